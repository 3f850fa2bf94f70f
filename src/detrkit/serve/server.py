"""The application under uvicorn: slow clients, too many connections, and signals."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from detrkit.serve.limits import Limits
from detrkit.serve.service import Service
from detrkit.utils.signals import NUMBERS, signal_name

HEADER_SECONDS = 10.0  # for the first line and the headers of a request
STALL_SECONDS = 30.0  # in which a client takes nothing of an answer
_CHECK_SECONDS = 1.0
_FILES = 4096  # handles beside those of connections
_BUSY_BODY = b'{"error": {"code": "connections", "message": "too many connections are open", "image": null}}'
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_BUSY_BODY), _BUSY_BODY)
)


def serve(app: FastAPI, listening: socket.socket, limits: Limits) -> None:
    """Serve until a signal comes; finish what was taken, then return. A second signal ends the process at once.

    Args:
        app: of `create_app`.
        listening: of `detrkit.serve.listening.listen`.
        limits: of the application.
    """
    _raise_file_limit(limits.max_connections)
    config = uvicorn.Config(
        app,
        http=_protocol(limits.max_connections),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=math.ceil(limits.body_timeout + limits.timeout),
    )
    Server(config, app.state.service).run(sockets=[listening])


class Server(uvicorn.Server):
    """A server that stops by any of the signals that stop a command.

    Args:
        config: of uvicorn.
        service: that is told to take nothing more.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals within the context; those that the process was started to ignore stay ignored."""
        previous = {}
        for number in NUMBERS:
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):
                previous[number] = handler
                signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop taking requests; by a second signal end the process."""
        if self.should_exit:
            with suppress(OSError):
                os.write(2, f"detrkit: stopped at once by {signal_name(sig)}\n".encode())
            os._exit(128 + sig)
        with suppress(OSError):
            os.write(2, b"detrkit: finishing what was taken (again: stop at once)\n")
        self._service.stop()
        self.should_exit = True


def _protocol(max_connections: int) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with a bound on connections, and an end for those that make no progress."""

    class Protocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _idle_since = 0.0
        _stalled_since: float | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # headers and body of an answer are two packets: Nagle's algorithm holds back the second one until the first
            # is acknowledged, which the other side delays by 40 ms; asyncio turns it off for sockets of its own alone
            with suppress(OSError):
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._idle_since = self.loop.time()
            if len(self.connections) > max_connections:
                transport.write(_BUSY)
                transport.close()
            self._timer = self.loop.call_later(_CHECK_SECONDS, self._check)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled_since = self.loop.time()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stalled_since = None

        def data_received(self, data: bytes) -> None:
            if not self.transport.is_closing():
                super().data_received(data)

        def _check(self) -> None:
            now = self.loop.time()
            closing = self.transport.is_closing()
            if closing and self._stalled_since is None:
                self._stalled_since = now
            if self.cycle is not None and not self.cycle.response_complete:
                self._idle_since = now
            stalled = self._stalled_since is not None and now - self._stalled_since > STALL_SECONDS
            if stalled or (not closing and now - self._idle_since > HEADER_SECONDS):
                self.transport.abort()
                return
            self._timer = self.loop.call_later(_CHECK_SECONDS, self._check)

    return Protocol


def _raise_file_limit(connections: int) -> None:
    """Allow as many open files as the connections need, as far as the system lets a process do so."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
