"""Listening on TCP ports: on each address that a name stands for, and what to do about a port that is taken."""

import contextlib
import errno
import socket

from kaas import addresses
from kaas.errors import UsageError

_BACKLOG = 4096
_NOT_OURS = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


def listen_on_all(
    hosts: list[str], port: int, option: str, stack: contextlib.ExitStack, host_option: str = addresses.HOST_OPTION
) -> list[socket.socket]:
    """Listen on one port of those addresses that this machine has, until the stack is left.

    Args:
        hosts: their addresses, one at least.
        port: 0 for one that is free on the first of them.
        option: what an error calls the port.
        stack: closes what is open.
        host_option: what an error calls the option that names the addresses.

    Raises:
        UsageError: the port is taken on one of them, or none of them is ours.
    """
    listeners: list[socket.socket] = []
    why = None
    for address in hosts:
        try:
            listeners.append(stack.enter_context(_listen(address, port)))
        except OSError as error:
            not_ours = error.errno in _NOT_OURS
            remedy = (
                f"choose an address of this machine for {host_option}"
                if not_ours
                else "choose another one, or end what uses it"
            )
            why = UsageError(f"{option} {port} on {address}: {error.strerror}: {remedy}")
            if not not_ours:
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
