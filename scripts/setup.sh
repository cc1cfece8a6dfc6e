#!/usr/bin/env bash
# Creates .venv and installs medplib into it. Without an NVIDIA GPU the exact versions of constraints.txt are installed, with the CPU
# build of torch where the package index offers it; with one, pip chooses the newest torch for the machine's CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" - <<'PY' || { echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python" >&2; exit 2; }
import sys
sys.exit(sys.version_info < (3, 11))
PY
stamp=.venv/.installed
want=$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then exit 0; fi
echo "setting up .venv (a few minutes the first time)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install -q --upgrade pip
if [ "${MEDPLIB_CUDA:-}" = 1 ] || { [ -z "${MEDPLIB_CUDA:-}" ] && command -v nvidia-smi >/dev/null 2>&1; }; then
  .venv/bin/python -m pip install -q -e '.[dev]'
else
  # torch first: its CPU build satisfies the pin, and nothing of CUDA is pulled in by the packages that follow.
  .venv/bin/python -m pip install -q -c constraints.txt torch || {
    .venv/bin/python -m pip install -q -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch; }
  .venv/bin/python -m pip install -q -c constraints.txt -e '.[dev]'
fi
echo "$want" > "$stamp"
