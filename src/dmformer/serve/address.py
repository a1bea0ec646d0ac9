"""Where the server listens: a place that is taken before a model is loaded, so that a taken one is told at once."""

import errno
import ipaddress
import socket
from collections.abc import Sequence

from ..utils.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of this machine that no other machine can use."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Connections wait until they are accepted.

    Raises:
        UserError: The port is taken or not allowed, the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UserError(f"--host {host} is not an address of this machine: {error.strerror}.") from None
    place = socket.socket(family, kind, protocol)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a server could not follow another at once
        place.bind(address)
        place.listen()
    except OSError as error:
        place.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is taken: give another --port.") from None
        raise UserError(f"port {port} of {host} cannot be had: {error.strerror}.") from None
    return place


def is_loopback(place: socket.socket) -> bool:
    """Whether only this machine can reach a socket."""
    return ipaddress.ip_address(place.getsockname()[0].partition("%")[0]).is_loopback


def url(place: socket.socket) -> str:
    """What to type into a browser on this machine."""
    host, port = place.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    shown = "localhost" if address.is_unspecified else f"[{host}]" if address.version == 6 else host
    return f"http://{shown}:{port}/"


def known_names(place: socket.socket, host: str, more: Sequence[str]) -> set[str]:
    """Names by which a browser may ask for the server: the loopback's, those given, and beyond it the machine's."""
    beyond = () if is_loopback(place) else (host, socket.gethostname())
    return {name.lower() for name in (*LOOPBACK, *beyond, *more)}
