#!/usr/bin/env bash
# Check everything: lint, format, types, tests. Makes .venv and installs the test extra if needed.
# Arguments go to pytest: bash scripts/test.sh -k store
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh test
export PATH="$PWD/.venv/bin:$PATH"
run() {
  echo "==> $*"
  "$@"
}
run ruff check
run ruff format --check
for platform in linux win32 darwin; do # each with a cache of its own, which another platform would throw away
  run mypy --platform "$platform" --cache-dir ".mypy_cache/$platform"
done
run lint-imports --no-logo
# worksteal keeps the tests of a module together, so that its fixtures are made once.
run pytest -n auto --dist worksteal --durations=25 "$@"
