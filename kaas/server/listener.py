"""The ports that others come to: where they listen, and who may be let in.

Nothing of the server itself is needed for that: a check of the settings is soon done.
"""

import contextlib
import socket

from kaas import addresses
from kaas.errors import UsageError
from kaas.listening import listen_on_all
from kaas.pool.settings import Settings


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
