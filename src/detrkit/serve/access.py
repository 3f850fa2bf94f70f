"""Who may ask, and what every answer has: token, host, headers, counts, and no text of an exception."""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import time
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detrkit.serve.metrics import Metrics
from detrkit.serve.refusal import Refusal

log = logging.getLogger("detrkit.serve")

OPEN = ("/", "/health", "/ready")  # without a token: the page holds no secret, and asks for the token itself
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def refused(refusal: Refusal) -> Response:
    """Return the answer of a refusal."""
    return Response(refusal.body, refusal.status, refusal.headers, "application/json")


class Access:
    """Middleware around all routes.

    Args:
        app: the routes.
        token: that every request but those for `OPEN` must have; None: none is needed.
        hosts: names in the Host header that are answered, without ports; None: any. Of a service on the loopback
            address these are its own: the page of another site, whose name may lead here, is not answered.
        metrics: to count in.
        routes: paths that are counted by their name.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        hosts: Collection[str] | None,
        metrics: Metrics,
        routes: Collection[str],
    ) -> None:
        self._app = app
        self._token = None if token is None else token.encode()
        self._hosts = hosts
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, send_with_headers)
        except Refusal as refusal:
            await refused(refusal)(scope, receive, send_with_headers)
        except Exception:
            log.exception("a request failed")
            if status:
                raise  # the answer has begun: the connection is cut
            fault = Refusal(500, "fault", "the server failed on this request; its log says why")
            await refused(fault)(scope, receive, send_with_headers)
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.request(route, status, time.perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        """Check who asks.

        Raises:
            Refusal: another site's page (403), another name of this machine (421), or no or another token (401).
        """
        headers = Headers(scope=scope)
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            raise Refusal(421, "host", "this server does not answer under that name", close=True)
        if scope["method"] not in ("GET", "HEAD") and headers.get("sec-fetch-site") == "cross-site":
            raise Refusal(403, "cross_site", "pages of other sites are not answered", close=True)
        if self._token is not None and scope["path"] not in OPEN:
            given = _given_token(headers.get("authorization", ""))
            if not hmac.compare_digest(given, self._token):
                raise Refusal(401, "token", "the token is missing or wrong: Authorization: Bearer <token>", close=True)


def _host(header: str) -> str:
    """Return the name in a Host header, without its port."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdigit() else header).lower()


def _given_token(header: str) -> bytes:
    """Return the token of an Authorization header: a bearer's, or the password of a name and password."""
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer":
        return value.strip().encode()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""
