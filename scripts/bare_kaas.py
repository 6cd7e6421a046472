"""Lets a script import those modules of kaas that need no library, before the libraries are installed.

`kaas/__init__.py` ends a program that lacks them, so here the package is there without what that file does. Import this
before anything of kaas.
"""

import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent

if "kaas" not in sys.modules:
    _package = ModuleType("kaas")
    _package.__path__ = [str(ROOT / "kaas")]
    sys.modules["kaas"] = _package
