"""One client process, as the load generator sees it: what it has said over its link, and what it is told."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

from kaas.load.clients import DONE, DUE, READY


class LinkedClient:
    """Our end of one client process.

    Its numbers are its own in the run, its place's on the board, and its process' at the fork server. `told` is called
    when it has said something, `free` when it has sent a request.
    """

    def __init__(
        self,
        numbers: tuple[int, int, int],
        link: socket.socket,
        told: Callable[[], None],
        free: Callable[["LinkedClient"], None],
    ) -> None:
        self.copy, self.place, self.child = numbers
        self.begun = self.leaving = False
        self.due: float | None = None  # the arrival that it was told to send
        self._told, self._free = told, free
        link.setblocking(False)
        self._link = link
        self._said = b""
        asyncio.get_running_loop().add_reader(link.fileno(), self._read)

    @property
    def ready(self) -> bool:
        """Whether it is prepared."""
        return self._said.startswith(READY)

    @property
    def runs(self) -> bool:
        """Whether it sends requests, and is to go on."""
        return self.begun and not self.leaving

    @property
    def complaint(self) -> str:
        """Why neither it nor a successor can go on, if it said so."""
        return self._said.removeprefix(READY).decode(errors="replace").strip()

    def begin(self) -> None:
        """Let it send requests."""
        self.begun = True
        with contextlib.suppress(OSError):
            self._link.sendall(b"\n")

    def send(self, due: float) -> None:
        """Have it send a request when that is due, at once if it is by now."""
        self.due = due
        with contextlib.suppress(OSError):
            self._link.sendall(DUE.pack(due))

    def finish(self) -> None:
        """Let it end after the request that it is in."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)

    def ended(self) -> None:
        """Its process has ended, or nobody can tell any more: closing the link ends it, should it still be there."""
        self._read()
        self._close()

    def _read(self) -> None:
        if self._link.fileno() < 0:
            return
        try:
            data = self._link.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        said = data.replace(DONE, b"")
        self._said += said
        if not data:
            self._close()
        if said != data:
            self.due = None
            self._free(self)
        if said or not data:
            self._told()

    def _close(self) -> None:
        if self._link.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._link.fileno())
            self._link.close()
