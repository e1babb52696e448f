"""The attacks are those of ``python -m benchmarks.privacy``, smaller: one definition for both."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
