"""What is said once by all processes of a fork server: each of them finds it out, but one line is enough."""

import contextlib
import mmap
import sys


class Once:
    """Says the first line that it is given. Make it at a module's top, which is run before the fork."""

    def __init__(self) -> None:
        self._said = mmap.mmap(-1, 1)  # shared with every process that is forked from here

    def __call__(self, text: str) -> None:
        """Say it on stderr, unless something was said."""
        if not self._said[0]:
            self._said[0] = 1
            say(text)


def say(text: str) -> None:
    """Say a line on stderr, as far as there is one."""
    with contextlib.suppress(OSError, ValueError):  # whoever it is may have closed its stderr
        print(text, file=sys.stderr)  # noqa: T201
