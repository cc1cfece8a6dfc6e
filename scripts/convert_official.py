"""Published checkpoints to checkpoint folders and back; the same as `python -m medplib.convert` (see there)."""

from medplib.convert.__main__ import main
from medplib.errors import run_command

run_command(main)
