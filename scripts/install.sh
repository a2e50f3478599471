#!/usr/bin/env bash
# Make .venv and install featcache with one extra into it: bash scripts/install.sh demo
# Does nothing when that was done for this pyproject.toml. Editable, so changed code counts at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=$1
python=${PYTHON:-python3}
stamp=.venv/installed-$extra

if [ -f "$stamp" ] && cmp -s pyproject.toml "$stamp"; then
  exit 0
fi
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: featcache needs Python 3.11 or newer. Name one: PYTHON=/path/to/python3 bash $0 $extra" >&2
    exit 1
  fi
  echo "==> Making a virtual environment in $PWD/.venv"
  "$python" -m venv .venv
fi
echo "==> Installing featcache and what it needs into .venv. PyTorch is several GB, so this takes some minutes."
PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install --editable ".[$extra]"
cp pyproject.toml "$stamp"
