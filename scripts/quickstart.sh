#!/usr/bin/env bash
# From a fresh clone to a first result: make .venv, install, run `featcache demo`.
# What it writes is in data/demo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh demo
echo "==> Running featcache demo: 2,000 images, two heads, three predictions"
exec .venv/bin/featcache demo "$@"
