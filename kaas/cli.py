"""What the command lines share: argument types, and an error as one line.

A script parses its arguments, calls one function and returns; nothing else happens in it.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import TypeVar

from kaas import __version__, processes, supervision
from kaas.client import DEFAULT_ADDRESS
from kaas.errors import KaasError, UsageError

Number = TypeVar("Number", int, float)
_LARGEST = 10**9
at_once = processes.at_once
"""How `run` ends a program that has no CUDA context."""


def run(main: Callable[[], int | None], end: Callable[[int], object] = sys.exit) -> None:
    """Call `main` and end with its result; a `KaasError` becomes one line on stderr and its exit code."""
    try:
        code = main() or 0
        if sys.stdout is not None:
            sys.stdout.flush()
    except KaasError as error:
        print(f"{program()}: {error}", file=sys.stderr)  # noqa: T201
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # The reader of our output (`| head`) has left: nothing more to say, and nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    end(code)


def program() -> str:
    """Name the running script, for the start of an error line."""
    return os.path.basename(sys.argv[0])  # noqa: PTH119


def parser(about: str | None) -> argparse.ArgumentParser:
    """Make the parser of a program's command line; `about` is the program's docstring."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return made


def matrix_size() -> str:
    """Read the command line of a script that takes N, the rows of its matrix, or nothing."""
    made = parser(sys.modules["__main__"].__doc__)
    made.add_argument("n", metavar="N", nargs="?", default="500", help="rows of the matrix (default %(default)s)")
    return str(made.parse_args().n)


def positive_int(text: str) -> int:
    """Read a whole number of at least 1."""
    return _number(text, int, 1, "a whole number of at least 1")


def count(text: str) -> int:
    """Read a whole number of at least 0."""
    return _number(text, int, 0, "a whole number of at least 0")


def seconds(text: str) -> float:
    """Read a finite number of seconds of at least 0."""
    return _number(text, float, 0.0, "a number of seconds of at least 0")


def positive_seconds(text: str) -> float:
    """Read a finite number of seconds above 0."""
    return _number(text, float, sys.float_info.min, "a number of seconds above 0")


def supervisor(text: str) -> int:
    """Read the number of the process in charge; from now on this one ends with its parent."""
    supervision.end_with_parent()
    return positive_int(text)


def port(text: str) -> int:
    """Read a TCP port: 0 (any that is free) to 65535."""
    value = _number(text, int, 0, "a port from 0 to 65535")
    if value > 65535:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return value


def names(text: str) -> tuple[str, ...]:
    """Read names with commas between them."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of names with commas between them")
    return found


def size(text: str) -> int:
    """Read a number of bytes, of which there may be very many."""
    return _number(text, int, 1, "a number of bytes above 0", most=2**62)


def _number(text: str, kind: Callable[[str], Number], least: Number, what: str, *, most: float = _LARGEST) -> Number:
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
    if not least <= value <= most:  # so written, it refuses a NaN, too
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def file_name(text: str) -> str:
    """Read a name that can be the begin of a file's name."""
    if not text or "/" in text or "\0" in text or text.startswith((".", "-")):
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot name a file: give letters, digits, '-', '_' or '.', and no '/'"
        )
    return text


def add_server_option(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Add `--server`, the address of the KaaS server."""
    parser.add_argument(
        "--server",
        default=os.environ.get("KAAS_ADDRESS") or DEFAULT_ADDRESS,
        metavar="HOST:PORT",
        help=f"the KaaS server (default $KAAS_ADDRESS, then {DEFAULT_ADDRESS}){more}",
    )


def add_ray_options(parser: argparse.ArgumentParser, engine: str, address: str) -> None:
    """Add `--engine` and what goes with the nodes of a Ray cluster; `check_ray_options` looks at them.

    Args:
        parser: of the program.
        engine: what --engine chooses.
        address: which Ray it is without --ray-address.
    """
    add = parser.add_argument
    add("--engine", choices=("local", "ray"), default="local", help=f"{engine} (default %(default)s)")
    add(
        "--ray-address",
        default="",
        metavar="HOST:PORT",
        help=f"with ray: the cluster's head, or auto; this machine must be one of its nodes (default: {address})",
    )
    add(
        "--link-host",
        default="",
        metavar="HOST",
        help="with ray: address of this machine at which the nodes reach it (default: the one that Ray has)",
    )
    add("--link-port", type=port, default=0, metavar="PORT", help="with ray: the port for that (default: any free one)")


def check_ray_options(arguments: argparse.Namespace) -> None:
    """Raise UsageError for what does not go together."""
    if arguments.engine == "local":
        for name in ("ray_address", "link_host", "link_port"):
            if getattr(arguments, name):
                raise UsageError(f"--{name.replace('_', '-')} goes with --engine ray")
    elif importlib.util.find_spec("ray") is None:
        raise UsageError("--engine ray needs the library ray: run scripts/setup --ray")


def add_supervised_option(parser: argparse.ArgumentParser) -> None:
    """Add `--supervised PID`, for a program that a script starts; 0 without it."""
    parser.add_argument(
        "--supervised",
        type=supervisor,
        default=0,
        metavar="PID",
        help="run under the script that is this process: leave Ctrl-C to it, and end in order when it is gone",
    )
