"""Published checkpoints to checkpoint folders and back; the same as `python -m medplib.convert` (see there)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medplib.convert.__main__ import main
from medplib.errors import run_command

run_command(main)
