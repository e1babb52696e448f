"""Makes ``fake_federation`` importable, here and (through ``sys.path``) in processes that tests start."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
