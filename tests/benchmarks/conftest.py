"""``benchmarks`` is no part of the wheel: it is found beside ``src``, whichever way pytest was called."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
