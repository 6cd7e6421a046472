"""What went wrong while samples were taken: each kind is said once, and counted at the end."""

from collections import Counter
from collections.abc import Callable

_MOST_KINDS = 20


class Troubles:
    """Kinds of trouble and how often each came; a run of hours with one fault makes two lines.

    Args:
        say: takes a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._counts: Counter[str] = Counter()

    def tell(self, kind: str, text: str = "") -> None:
        """Say `text`, or the kind itself, if there has been none of this kind before."""
        self._counts[kind] += 1
        if self._counts[kind] == 1:
            if len(self._counts) <= _MOST_KINDS:
                self._say(text or kind)
            elif len(self._counts) == _MOST_KINDS + 1:
                self._say("there is more trouble, of other kinds")

    def close(self) -> None:
        """Say how often it came, of what came more than once."""
        for kind, count in self._counts.most_common(_MOST_KINDS):
            if count > 1:
                self._say(f"{count} times in all: {kind}")
        self._counts.clear()
