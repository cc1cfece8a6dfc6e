#!/usr/bin/env bash
# Set-up and the whole test suite. Extra arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# One thread per process: the tests are many small operations, which threads only slow down.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
exec .venv/bin/python -m pytest -n "${MEDPLIB_TEST_WORKERS:-2}" --dist worksteal "$@"
