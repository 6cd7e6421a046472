"""Fetch the wheels of pinned sets for a Python on Linux, x86-64, whatever this machine is; scripts/setup calls it.

pip evaluates the markers of a line (`; python_full_version < "3.12"`) for the machine that it runs on, even where it
downloads for another. So they are evaluated here, and pip is given the lines without them.
"""

import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

OLDEST_GLIBC, NEWEST_GLIBC = 5, 28
"""Of glibc 2.x, what wheels may be made for: 2.28 is in every distribution that is maintained, RHEL 8 among them."""


def pins(file: Path, python: str) -> list[str]:
    """Give the lines of a set that hold for a Python (such as 3.12.0), without their markers."""
    machine = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "sys_platform": "linux",
    }
    lines = (line.strip() for line in file.read_text().splitlines())
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [f"{one.name}{one.specifier}" for one in wanted if one.marker is None or one.marker.evaluate(machine)]


def fetch(folder: Path, version: str, wanted: list[str]) -> int:
    """Have pip fetch the wheels of these pins; return its exit code."""
    platforms = ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"]
    platforms += [f"manylinux_2_{minor}_x86_64" for minor in range(OLDEST_GLIBC, NEWEST_GLIBC + 1)]
    options = [word for platform in platforms for word in ("--platform", platform)]
    options += ["--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", version, "--dest", str(folder)]
    return subprocess.run([sys.executable, "-m", "pip", "download", *options, *wanted], check=False).returncode


def main() -> int:
    """Fetch all, and say what there is."""
    folder, version, files = Path(sys.argv[1]), sys.argv[2], [Path(name) for name in sys.argv[3:]]
    # Some lines differ within a version: 3.11.0 takes another soupsieve than 3.11.5.
    for file in files:
        for wanted in {tuple(pins(file, f"{version}.{patch}")) for patch in (0, 99)}:
            if code := fetch(folder, version, list(wanted)):
                return code
    wheels = list(folder.glob("*.whl"))
    print(f"{folder} has {len(wheels)} wheels, {sum(wheel.stat().st_size for wheel in wheels) / 2**20:.1f} MiB in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
