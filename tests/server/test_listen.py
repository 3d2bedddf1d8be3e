"""The listening address: taken early, refused in words."""

import socket

import pytest

from server.listen import AddressInUse, bind, is_reachable_by_others


def test_a_bound_socket_has_its_port_and_refuses_until_it_listens() -> None:
    with bind("127.0.0.1", 0) as sock:
        address = sock.getsockname()
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect(address)
        sock.listen()
        with socket.socket() as client:
            client.connect(address)


def test_a_port_in_use_is_told_with_the_flag_that_changes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"127.0.0.1:{port}.*--port"):
            bind("127.0.0.1", port)


def test_a_host_that_is_nobodys_is_told() -> None:
    with pytest.raises(AddressInUse, match="--host"):
        bind("192.0.2.1", 0)


@pytest.mark.parametrize(("host", "open_"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_only_loopback_is_closed_to_others(host: str, open_: bool) -> None:
    with bind(host, 0) as sock:
        assert is_reachable_by_others(sock) is open_
