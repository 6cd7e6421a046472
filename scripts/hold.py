"""Says whose a script's temporary folders are, so that the next run removes them if all that uses them was killed.

    hold.py DESCRIPTOR FILE FOLDER...

DESCRIPTOR is where the script has FILE open, in the first of the folders: the lock on it ends with the script and all
that it started. kaas.leftovers looks for the file under the name that it has in the end. The standard library only.
"""

import os
import sys
from pathlib import Path

import bare_kaas  # noqa: F401

from kaas import leftovers, locks


def main() -> None:
    descriptor, file, *folders = sys.argv[1:]
    locks.lock(int(descriptor))
    locks.Holder.of(os.getppid()).write(int(descriptor), "\n".join(folders))
    Path(file).rename(Path(folders[0], leftovers.LOCK))


if __name__ == "__main__":
    main()
