"""The ports that others come to: where they listen, and what to do about one that is taken."""

import contextlib
import errno
import socket

from kaas.addresses import socket_addresses
from kaas.errors import UsageError

_BACKLOG = 4096
_NOT_OURS = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


def listen(addresses: list[str], port: int, option: str, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Listen on one port of those addresses that this machine has, until the stack is left.

    Args:
        addresses: one at least.
        port: 0 for one that is free on the first of them.
        option: what an error calls the port.
        stack: closes what is open.

    Raises:
        UsageError: the port is taken on one of them, or none of them is ours.
    """
    listeners: list[socket.socket] = []
    why = None
    for address in addresses:
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
    family, at = socket_addresses(address, port)[0]
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
