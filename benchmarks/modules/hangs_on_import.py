"""The kernel tests/example_kernels/faulty.py, whose import hangs as long as the file that SOAK_HANG names is there."""

import os
import time
from pathlib import Path

from kaas import ROOT, kernels

while Path(os.environ["SOAK_HANG"]).exists():
    time.sleep(0.01)

call = kernels.load(ROOT / "tests" / "example_kernels" / "faulty.py", kernels.KERNEL_FUNCTION).call
