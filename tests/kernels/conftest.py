"""All kernels of all installed choices of ``kernels``, and small convolutions to try them on."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
