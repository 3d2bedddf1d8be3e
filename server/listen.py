"""The socket a server listens on, taken before anything slow is loaded.

Owns binding, and whether others than this machine can come in. Nothing is listened to yet, so clients are refused
until the server is ready for them.
"""

import ipaddress
import socket

UNSENT_BYTES = 16 << 10
"""What the system may keep of one answer beside what is on its way; otherwise that comes to megabytes for a client that
does not read, and whether it reads shows only now and then."""


class AddressInUse(Exception):
    """The address cannot be had: somebody else has it, it is not ours, or the port is a privileged one."""


def bind(host: str, port: int) -> socket.socket:
    """A bound socket; connections inherit its options. Raises AddressInUse with what to do."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AddressInUse(f"--host {host} is no address of this machine: {error.strerror or error}.") from error
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise AddressInUse(
            f"Cannot listen on {host}:{port}: {error.strerror}. Give another --port or --host."
        ) from error
    return sock


def is_reachable_by_others(sock: socket.socket) -> bool:
    """Whether other machines may reach a bound socket: every address but loopback ones."""
    address = ipaddress.ip_address(sock.getsockname()[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1
    return not (mapped or address).is_loopback
