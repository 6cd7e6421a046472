"""What a host's name or address stands for."""

import ipaddress
import socket
import sys
from collections.abc import Iterable
from typing import Any

from kaas.client import split_address
from kaas.errors import KaasError, UsageError

HOST_OPTION = "--host"
"""What an error calls the option that a host was given with, unless another was."""


def resolve(host: str, option: str = HOST_OPTION) -> list[str]:
    """Give the addresses that a name or address stands for, as numbers.

    Raises:
        UsageError: it stands for nothing.
    """
    return list(dict.fromkeys(address[0] for _, address in socket_addresses(host, 0, option)))


def is_loopback(host: str, option: str = HOST_OPTION) -> bool:
    """Tell whether everything that a name or address stands for is this machine only.

    Raises:
        UsageError: it stands for nothing.
    """
    return all(ipaddress.ip_address(address).is_loopback for address in resolve(host, option))


def written(sockets: Iterable[socket.socket]) -> str:
    """Write where they listen as `host:port`."""
    places = (each.getsockname() for each in sockets)
    return " and ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port, *_ in places)


def socket_addresses(
    host: str, port: int, option: str = HOST_OPTION
) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    """Give each address of a name as `socket.bind` takes it, with its family.

    Raises:
        UsageError: it stands for nothing.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # a name that cannot be a host's is a UnicodeError
        raise UsageError(f"{option} {host}: {getattr(error, 'strerror', None) or error}") from None
    return [(family, address) for family, *_, address in found]


def ours_towards(host: str, option: str) -> str:
    """Tell which address of this machine others see that are reached at a host; nothing is sent there.

    Raises:
        UsageError: the host stands for nothing, or no way leads there.
    """
    family, at = socket_addresses(host, 1, option)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(at)
        except OSError as error:
            raise UsageError(f"{option} {host}: {error.strerror}") from None
        ours: str = probe.getsockname()[0]
        return ours


def main() -> int:
    """Say which address of this machine a Ray's head at HOST:PORT sees: `python -m kaas.addresses HOST:PORT`."""
    try:
        print(ours_towards(split_address(sys.argv[1])[0], "RAY_ADDRESS"))  # noqa: T201
    except KaasError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
