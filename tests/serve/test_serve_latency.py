"""Answers leave at once: no connection of the server waits for acknowledgements."""

from __future__ import annotations

import asyncio
import socket

import pytest

pytest.importorskip("uvicorn")

from uvicorn.config import Config
from uvicorn.server import ServerState

from detrkit.serve.listening import listen
from detrkit.serve.server import _protocol


class Transport:
    """What a protocol asks a transport for."""

    def __init__(self, accepted: socket.socket) -> None:
        self.accepted = accepted

    def get_extra_info(self, name):
        return {"socket": self.accepted, "sockname": self.accepted.getsockname()}.get(name)

    def is_closing(self):
        return False


def test_nagles_algorithm_is_off():
    """With it an answer of two packets took 44 ms more: the second waited for the acknowledgement of the first."""
    loop = asyncio.new_event_loop()
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0  # asyncio would leave it so
            config = Config(app=lambda: None, lifespan="off")
            config.load()
            protocol = _protocol(10)(config=config, server_state=ServerState(), app_state={}, _loop=loop)
            protocol.connection_made(Transport(accepted))
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    loop.close()
