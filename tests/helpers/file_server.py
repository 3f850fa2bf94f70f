"""A server on this machine that gives one file, or several, and misbehaves as asked."""

from __future__ import annotations

import http.server
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

S = TypeVar("S", bound=http.server.ThreadingHTTPServer)


@contextmanager
def running(server: S) -> Iterator[S]:
    """A server that answers during the block."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at `url`.

    `cut` holds how many bytes the next connections send before they break off, `status` what the next ones answer
    instead; `ranges` is whether the server can go on in the middle. `requests` lists the Range headers that came.
    """

    daemon_threads = True

    def __init__(self, content: bytes, path: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.cut, self.status, self.requests = content, True, [], [], []
        self.url = f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, header = self.server, self.headers.get("Range")
        server.requests.append(header)
        if server.status and (status := server.status.pop(0)):
            return self.send_error(status)
        start = int(re.fullmatch(r"bytes=(\d+)-", header)[1]) if header and server.ranges else 0
        size = len(server.content)
        if start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cut:
            body = body[: server.cut.pop(0)]
        self.wfile.write(body)
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_WR)

    def log_message(self, *_):
        pass


@contextmanager
def serving(content: bytes, path: str) -> Iterator[Server]:
    """A server that runs during the block."""
    with running(Server(content, path)) as server:
        yield server


class FilesServer(http.server.ThreadingHTTPServer):
    """Serves `files`, path -> content, below `url`; `cut` as of `Server`.

    `requests` lists path and Range header of what was asked for.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), FilesHandler)
        self.files, self.cut, self.requests = dict(files), [], []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class FilesHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, header = self.server, self.headers.get("Range")
        server.requests.append((self.path, header))
        content = server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        start = int(re.fullmatch(r"bytes=(\d+)-", header)[1]) if header else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        self.wfile.write(body[: server.cut.pop(0)] if server.cut else body)
        self.wfile.flush()
        return self.connection.shutdown(socket.SHUT_WR)

    def log_message(self, *_):
        pass


@contextmanager
def serving_files(files: dict[str, bytes]) -> Iterator[FilesServer]:
    """A server of several files that runs during the block."""
    with running(FilesServer(files)) as server:
        yield server
