"""The socket of a server, opened before torch is imported: a port that is taken is known at once."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from detrkit.utils.errors import DetrkitError


def listen(host: str, port: int) -> socket.socket:
    """Open the socket of a server.

    Args:
        host: name or address.
        port: 0 for any free one.

    Raises:
        DetrkitError: the address is no address of this machine, or the port is taken or not permitted.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "no such address"
        raise DetrkitError(
            f"--host {host} --port {port}: cannot listen ({reason}); choose another port or host"
        ) from error


def is_loopback(listening: socket.socket) -> bool:
    """Return whether a socket can be reached from this machine alone."""
    try:
        return ip_address(listening.getsockname()[0]).is_loopback
    except ValueError:
        return False
