"""What a host's name or address stands for."""

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

from kaas.errors import UsageError


def resolve(host: str) -> list[str]:
    """Give the addresses that a name or address stands for, as numbers.

    Raises:
        UsageError: it stands for nothing.
    """
    return list(dict.fromkeys(address[0] for _, address in socket_addresses(host, 0)))


def is_loopback(host: str) -> bool:
    """Tell whether everything that a name or address stands for is this machine only.

    Raises:
        UsageError: it stands for nothing.
    """
    return all(ipaddress.ip_address(address).is_loopback for address in resolve(host))


def written(sockets: Iterable[socket.socket]) -> str:
    """Write where they listen as `host:port`."""
    places = (each.getsockname() for each in sockets)
    return " and ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port, *_ in places)


def socket_addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    """Give each address of a name as `socket.bind` takes it, with its family.

    Raises:
        UsageError: it stands for nothing.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # a name that cannot be a host's is a UnicodeError
        raise UsageError(f"--host {host}: {getattr(error, 'strerror', None) or error}") from None
    return [(family, address) for family, *_, address in found]
