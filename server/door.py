"""The socket a server listens on, taken before anything slow is loaded.

Owns binding. Nothing is listened to yet, so clients are refused until the server is ready for them.
"""

import socket


class AddressInUse(Exception):
    """The address cannot be had: somebody else has it, it is not ours, or the port is a privileged one."""


def bind(host: str, port: int) -> socket.socket:
    """A bound socket. Raises AddressInUse with what to do."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        door = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AddressInUse(f"--host {host} is no address of this machine: {error.strerror or error}.") from error
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind(address)
    except OSError as error:
        door.close()
        raise AddressInUse(
            f"Cannot listen on {host}:{port}: {error.strerror}. Give another --port or --host."
        ) from error
    return door
