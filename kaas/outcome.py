"""What a client module's `run_client` says of one request, and how that is made sound before anybody relies on it."""

import math
import operator
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, NamedTuple, get_args

from kaas import wire

STATUSES = (*wire.STATUSES, "failed", "wrong_result")


class Outcome(NamedTuple):
    """What a client module's `run_client` returns: the first four fields at least, as a tuple or as this.

    Times are in milliseconds. `status` is `ok`, a status of the server's replies (kaas.wire), `failed` (the client
    itself failed) or `wrong_result`. Of anything but `ok`, `inner_ms` is 0.0.
    """

    outer_ms: float
    inner_ms: float
    setup_ms: float
    cold_start: bool
    status: str = "ok"
    waited_for_boot: bool = False
    gpu: int | None = None
    worker: int | None = None
    queued_ms: float = 0.0
    kernel_ms: float = 0.0
    error: str = ""


def _milliseconds(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    if not 0.0 <= number < math.inf:
        raise ValueError
    return number


def _number(value: object) -> int | None:
    return None if value is None else operator.index(value)  # type: ignore[arg-type]


_KINDS: Mapping[Any, tuple[Callable[[Any], object], str]] = {
    float: (_milliseconds, "give milliseconds of at least 0"),
    bool: (bool, "give True or False"),
    str: (str, "give a text"),
    int | None: (_number, "give a whole number, or None"),
}
_FIELDS = tuple((name, *_KINDS[kind]) for name, kind in Outcome.__annotations__.items())
_FIELDS_AT_LEAST = 4
_EXACT_TYPES = frozenset(product(*(get_args(kind) or (kind,) for kind in Outcome.__annotations__.values())))
"""Those of an outcome's fields, if each is of its own kind."""


def sound(result: object) -> Outcome:
    """Make an `Outcome` of what `run_client` returned, every field of its kind, whatever kind of number it came as.

    A plain four-tuple of the original's kind says by `inner_ms == 0.0` that the request was not served, but not why:
    that is a failure.

    Raises:
        ValueError: it is not `(outer_ms, inner_ms, setup_ms, cold_start, ...)`, or a value is none of its kind.
    """
    if type(result) is Outcome and tuple(map(type, result)) in _EXACT_TYPES and result.status in STATUSES:
        times = result.outer_ms, result.inner_ms, result.setup_ms, result.queued_ms, result.kernel_ms
        if min(times) >= 0.0 and sum(times) < math.inf:  # as nearly all are; a sum with a NaN is not less
            return result
    if not isinstance(result, tuple | list) or len(result) < _FIELDS_AT_LEAST:
        raise ValueError(f"run_client returned {result!r:.80}: return (outer_ms, inner_ms, setup_ms, cold_start)")
    given = dict(zip(Outcome._fields[:_FIELDS_AT_LEAST], result, strict=False))
    found: dict[str, Any] = {}
    for name, kind, wanted in _FIELDS:
        if name in given or hasattr(result, name):
            value = given[name] if name in given else getattr(result, name)
            try:
                found[name] = kind(value)
            except (ValueError, TypeError, OverflowError):
                raise ValueError(f"run_client returned {name}={value!r:.80}: {wanted}") from None
    if "status" not in found and not found["inner_ms"]:
        found["status"] = "failed"
        found.setdefault("error", "not served, and the client does not say why")
    outcome = Outcome(**found)
    if outcome.status not in STATUSES:
        raise ValueError(f"run_client returned status={outcome.status!r:.80}: give one of {', '.join(STATUSES)}")
    return outcome
