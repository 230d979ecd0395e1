"""Makes the programs in scripts/ importable: the recorded decisions are read by the code that wrote them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
