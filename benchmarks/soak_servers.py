"""The servers of the soak: their command lines, and the readers of their event lines, which may stop for a while."""

import contextlib
import fcntl
import os
import re
import subprocess
import sys
import termios
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import common
import support

from kaas import events
from kaas.errors import KaasError

MESSAGE_SIZE = 8 * 1024 * 1024
"""What the servers have as --message-size."""
LINES = {
    "faulty": (
        *(str(common.MODULES / "hangs_on_import.py"), "-m", "3", "--when-full", "queue", "--max-queue", "16"),
        *("--boot-timeout", "2"),
    ),
    "matrix": (str(common.ROOT / "cuda-matmul-cpu.py"), "-m", "2"),
}
"""By server: its kernel, and its options beside those that both have."""
SERVERS = tuple(LINES)
PROCESSES = 3
"""Of a server without workers: itself, its fork server, and the reader."""

_OPTIONS = ("-g", "2", "--message-size", str(MESSAGE_SIZE), "--idle-timeout", "1", "--call-timeout", "1")
_LEFT_OUT = re.compile(r"\((\d+) lines are left out here: .*\)\n")


class Server(support.Server):
    """A server whose event lines go through a small pipe to a process, the reader, which writes them to a file.

    Args:
        folder: for all that it writes.
        line: its command line.
    """

    def __init__(self, folder: Path, line: list[str]) -> None:
        self.hang = folder / "hang"
        """While this file is there, the import of the faulty kernel hangs."""
        self._event_lines = folder / "event-lines"
        os.mkfifo(folder / "server-stdout")  # which is what the server's stdout is opened at
        self.pipe = os.open(folder / "server-stdout", os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(self.pipe, fcntl.F_SETPIPE_SZ, os.sysconf("SC_PAGE_SIZE"))  # the least that there is
        super().__init__(folder, line, {"SOAK_HANG": str(self.hang)})
        os.set_blocking(self.pipe, True)
        with self._event_lines.open("w") as file:
            self.reader = subprocess.Popen(
                ["cat"],
                env=self.marked.environment,
                stdin=self.pipe,
                stdout=file,
                process_group=0,  # a Ctrl-C is the soak's to handle
            )

    def unread(self) -> int:
        """Tell how many bytes of event lines are in the pipe."""
        return int.from_bytes(fcntl.ioctl(self.pipe, termios.FIONREAD, bytes(4)), sys.byteorder)

    def told(self) -> Counter[str]:
        """Count by name what the event lines tell of that came through, and the lines that were left out.

        Raises:
            KaasError: one is torn, or no event line.
        """
        told = Counter[str]()
        with self._event_lines.open() as file:
            for line in file:
                if left_out := _LEFT_OUT.fullmatch(line):
                    told["lines left out"] += int(left_out[1])
                elif (event := events.parse(line)) is None:
                    raise KaasError(f"this is no event line: {line!r}")
                else:
                    told[event.event] += (number := events.times(event))
                    told["rejected, told together"] += number if number > 1 else 0
                    told["lost for its boot took too long"] += "(--boot-timeout)" in event.detail
                    told["lost and left out"] += "left out" in event.detail and event.event == "lost"
        return told

    def kill(self) -> None:
        """Kill what is left of it."""
        self.process.kill()
        self.process.wait()
        self.marked.kill()
        self.reader.wait()
        os.close(self.pipe)


@contextlib.contextmanager
def servers_in(folder: Path) -> Iterator[dict[str, Server]]:
    """Start the servers; in the end kill what is left of them."""
    servers: dict[str, Server] = {}
    try:
        for name, (kernel, *arguments) in LINES.items():
            (folder / name).mkdir()
            line = support.command(Path(kernel), *_OPTIONS, *arguments, "--supervised", str(os.getpid()))
            servers[name] = Server(folder / name, line)
        for server in servers.values():
            server.wait_until_listening()
        yield servers
    finally:
        for server in servers.values():
            server.kill()
