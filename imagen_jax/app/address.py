"""Where the page is found: the address that its server is bound to."""

import errno
import ipaddress
import socket


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach a server at this address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises:
        ValueError: the port is no port or in use, or the host is none of this machine's.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}; it must be 1 to 65535, or 0 for any free one.")
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ValueError(f"--host {host} is no name or address of this machine.") from None
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise ValueError(_why_not(error, host, port)) from None
    return bound


def url_of(bound: socket.socket) -> str:
    """The address to type into a browser of this machine."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port < 65535 else port - 1
        return (
            f"--port {port} is in use: give another, such as --port {other}, or 0 for a free one."
        )
    if error.errno == errno.EACCES:
        return f"--port {port} is not for this user: give one from 1024 on."
    return f"--host {host} is no address of this machine ({error.strerror})."
