"""Where benchmarks put their figures: one JSON file a benchmark, a cell appended as soon as it is measured."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def append(benchmark: str, cell: dict[str, Any]) -> None:
    """Append one measured cell with what it was measured on."""
    path = RESULTS / f"{benchmark}.json"
    cells = json.loads(path.read_text()) if path.exists() else []
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    cells.append(
        cell
        | {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit.stdout.strip(),
            "python": platform.python_version(),
            "versions": {
                name: version(name) for name in ("featcache", "torch", "numpy", "h5py", "scikit-learn", "timm")
            },
        }
    )
    path.write_text(json.dumps(cells, indent=1) + "\n")
    print(json.dumps(cell))
