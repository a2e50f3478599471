"""Call every door with odd values and damaged files, 200 times each, and count what ends in a surprise.

A surprise is whatever is neither an answer nor an error of featcache's own, nor Python's own words about a signature.

    python scripts/bench/fuzz_doors.py [CALLS] [PYTEST ARGUMENTS]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    calls = sys.argv[1] if len(sys.argv) > 1 else "200"
    environment = os.environ | {"FEATCACHE_FUZZ_CALLS": calls}
    words = [sys.executable, "-m", "pytest", "-q", "--tb=short", "tests/kinds/test_inputs.py", *sys.argv[2:]]
    print(f"{calls} calls for each door")
    sys.exit(subprocess.call(words, env=environment, cwd=Path(__file__).parents[2]))
