"""The server's listening socket, opened before the model is loaded, so that a port in use is reported at once."""

import errno
import ipaddress
import socket
from collections.abc import Sequence

from ..utils.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Loopback names of this machine."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free port. Connections wait until they are accepted.

    Raises:
        UserError: The port is in use or not allowed, or the host is not an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UserError(f"--host {host} is not an address of this machine: {error.strerror}.") from None
    place = socket.socket(family, kind, protocol)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # allows an immediate restart
        place.bind(address)
        place.listen()
    except OSError as error:
        place.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is in use: give another --port.") from None
        raise UserError(f"port {port} of {host} cannot be opened: {error.strerror}.") from None
    return place


def is_loopback(place: socket.socket) -> bool:
    """Whether the socket can only be reached from this machine."""
    return ipaddress.ip_address(place.getsockname()[0].partition("%")[0]).is_loopback


def url(place: socket.socket) -> str:
    """URL of the server for a browser on this machine."""
    host, port = place.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    shown = "localhost" if address.is_unspecified else f"[{host}]" if address.version == 6 else host
    return f"http://{shown}:{port}/"


def known_names(place: socket.socket, host: str, more: Sequence[str]) -> set[str]:
    """Valid Host names: loopback names, the given names and, if not bound to loopback, those of the machine."""
    beyond = () if is_loopback(place) else (host, socket.gethostname())
    return {name.lower() for name in (*LOOPBACK, *beyond, *more)}
