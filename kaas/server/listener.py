"""The ports that others come to: where they listen, and what to do about one that is taken.

Nothing of the server itself is needed for that: a check of the settings is soon done.
"""

import contextlib
import errno
import socket

from kaas import addresses
from kaas.errors import UsageError
from kaas.pool.settings import Settings

_BACKLOG = 4096
_NOT_OURS = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


def check(settings: Settings) -> None:
    """Raise `UsageError` if a server could not, or must not, listen where it is told to."""
    with contextlib.ExitStack() as stack:
        listen(settings, stack)


def listen(settings: Settings, stack: contextlib.ExitStack) -> tuple[list[socket.socket], list[socket.socket]]:
    """Listen for clients and, if metrics are wanted, for scrapes, until the stack is left.

    Raises:
        UsageError: an address is taken, not ours, or open to others without a token.
    """
    host = settings.host
    named = addresses.resolve(host)  # once: a name may stand for something else the next time
    here = all(map(addresses.is_loopback, named))
    if not (here or settings.token or settings.insecure):
        raise UsageError(f"--host {host} is open to others: set KAAS_TOKEN, or say --insecure to let anybody call")
    clients = listen_on_all(named, settings.port, "port", stack)
    if settings.metrics_port is None:
        return clients, []
    # A scrape shows no token.
    scraped = named if here or settings.insecure else ["127.0.0.1"]
    return clients, listen_on_all(scraped, settings.metrics_port, "--metrics-port", stack)


def listen_on_all(hosts: list[str], port: int, option: str, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Listen on one port of those addresses that this machine has, until the stack is left.

    Args:
        hosts: their addresses, one at least.
        port: 0 for one that is free on the first of them.
        option: what an error calls the port.
        stack: closes what is open.

    Raises:
        UsageError: the port is taken on one of them, or none of them is ours.
    """
    listeners: list[socket.socket] = []
    why = None
    for address in hosts:
        try:
            listeners.append(stack.enter_context(_listen(address, port)))
        except OSError as error:
            why = UsageError(f"{option} {port} on {address}: {error.strerror}: {_remedy(error)}")
            if error.errno not in _NOT_OURS:
                raise why from None
        else:
            port = listeners[0].getsockname()[1]
    if why is not None and not listeners:
        raise why
    return listeners


def _listen(address: str, port: int) -> socket.socket:
    family, at = addresses.socket_addresses(address, port)[0]
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(at)
        # From here on a second server is refused; clients that come early wait until the loop serves.
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _remedy(error: OSError) -> str:
    if error.errno in _NOT_OURS:
        return "choose an address of this machine for --host"
    return "choose another one, or end what uses it"
