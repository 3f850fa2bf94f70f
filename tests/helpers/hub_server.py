"""A server on this machine that answers as the Hugging Face Hub does to huggingface_hub, and misbehaves as asked."""

from __future__ import annotations

import hashlib
import http.server
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from helpers.file_server import running

COMMIT = "c0ffee00" * 5
_PATH = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


class HubServer(http.server.ThreadingHTTPServer):
    """Serves `repositories`, name -> file -> content, under `main` and COMMIT.

    `gated` names repositories that ask for agreement; `cut` holds how many bytes the next downloads send before they
    break off; `swapped` is content sent in the place of the weights, under their hash. `requests` lists method, file
    and Range header of what was asked for.
    """

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.gated, self.cut, self.requests = repositories, set(), [], []
        self.swapped: bytes | None = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def downloads(self) -> list[str]:
        """The files whose content was asked for."""
        return [file for method, file, _ in self.requests if method == "GET" and not file.startswith("/api/")]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body: bool):
        server, path = self.server, _PATH.fullmatch(self.path.split("?")[0])
        name = path and path["repository"]
        server.requests.append((self.command, path["file"] if path else self.path, self.headers.get("Range")))
        if name not in server.repositories:
            return self.refuse(401, "RepoNotFound")
        if name in server.gated:
            return self.refuse(403, "GatedRepo")
        if path["revision"] not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        content = server.repositories[name].get(path["file"])
        if content is None:
            return self.refuse(404, "EntryNotFound", {"X-Repo-Commit": COMMIT})
        weights = path["file"].endswith((".safetensors", ".bin"))
        digest = hashlib.sha256(content).hexdigest() if weights else hashlib.sha1(content).hexdigest()
        if weights and server.swapped is not None:
            content = server.swapped
        begin = int(re.fullmatch(r"bytes=(\d+)-.*", self.headers["Range"])[1]) if "Range" in self.headers else 0
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if body:
            rest = content[begin:]
            if weights and server.cut:
                self.wfile.write(rest[: server.cut.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                return self.connection.shutdown(socket.SHUT_RDWR)
            self.wfile.write(rest)
        return None

    def refuse(self, status: int, code: str, headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in ({"X-Error-Code": code} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def hub(repositories: dict[str, dict[str, bytes]]) -> Iterator[HubServer]:
    """A server that runs during the block."""
    with running(HubServer(repositories)) as server:
        yield server
