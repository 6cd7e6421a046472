#!/usr/bin/env python3
"""Turn a server's log into a CSV of its events, in order of time: sortserverlogs.py INPUT OUTPUT.

Lines that are no events are passed over. The columns are described in kaas/events.py.
"""

from pathlib import Path

from kaas import cli, events


def main() -> None:
    """Sort one log."""
    parser = cli.parser(__doc__)
    parser.add_argument("input", type=Path, metavar="INPUT", help="what the server printed")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the CSV file to write")
    arguments = parser.parse_args()
    number = events.sort_log(arguments.input, arguments.output)
    print(f"{number} events in {arguments.output}")


if __name__ == "__main__":
    cli.run(main, cli.at_once)
