"""medplib: a pixel-grounding mixture-of-experts model for biomedicine (MedPLIB, arXiv 2412.09278)."""

import os

# albumentations asks its server for a newer version at import; a medical tool does not call home.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# numpy's matrix products here are small; threads of its own would only fight with torch's for the cores (measured: 50 times slower).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Threads of GNU OpenMP that wait for each other go to sleep soon instead of turning on the spot: as fast on a quiet machine, and where
# another program takes a core away 8 s for what took 130 (docs/experiments.md, 2026-11-26).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from medplib import compat  # noqa: F401  (must precede anything that imports torchvision)

__version__ = "0.1.0"
