"""Refusals: what a request gets instead of an answer, in words that say nothing of the server."""

from __future__ import annotations

import json
from typing import Any


class Refusal(Exception):
    """Reason why a request is not answered.

    Args:
        status: of HTTP.
        code: for programs, such as "image_too_large".
        message: for people; holds no text of an exception and no path.
        image: number of the image in the request, from 0.
        retry_after: seconds after which to ask again.
        close: whether the connection must be closed, because the body was not read to its end.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        image: int | None = None,
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.image = image
        self.retry_after = retry_after
        self.close = close

    def of_image(self, image: int) -> Refusal:
        """Return the refusal with the number of the image that it is about."""
        return Refusal(self.status, self.code, self.message, image=image, retry_after=self.retry_after)

    @property
    def body(self) -> bytes:
        """The answer as JSON."""
        error: dict[str, Any] = {"code": self.code, "message": self.message, "image": self.image}
        return json.dumps({"error": error}).encode()

    @property
    def headers(self) -> dict[str, str]:
        """Headers beside the content type."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.close:
            headers["Connection"] = "close"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers
