"""How much memory an extraction holds, over the number of images; how soon the first batch and rows are there.

    python scripts/bench/extract_memory.py FOLDER [--counts 1000 20000]

FOLDER takes the images and the stores. Each count of images (500 × 375 JPEGs; 200 different ones, each time with
other bytes behind the image's end, so that each is an image of its own) is extracted with Lite0 by a process of its
own, whose anonymous memory (RssAnon) is read twice a second; ``curve`` has the largest of each tenth of the run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import extract
import recording

CHILD = """
import json, sys, time
began = time.monotonic()
import featcache as fc
from featcache.core.progress import Silent

class FirstBatch(Silent):
    seconds = None
    def start(self, what, total, unit):
        self.what = what
    def advance(self, n=1):
        if self.seconds is None and self.what == "extract":
            self.seconds = time.monotonic() - began

first = FirstBatch()
report = fc.extract(sys.argv[1], sys.argv[2], progress=first)
print(json.dumps({"computed": report.computed, "first_batch_seconds": first.seconds, "stages": report.stages,
                  "images_per_second": report.images_per_second, "seconds": time.monotonic() - began}))
"""


def anonymous(pid: int) -> float:
    """Anonymous memory of a process, in MiB; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def image_files(folder: Path, count: int) -> Path:
    """A folder of *count* images."""
    made = folder / f"images-{count}"
    if made.is_dir() and sum(1 for _ in made.iterdir()) == count:
        return made
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    originals = extract.image_files("small", extract.photographs(), folder / "small-200", 200)
    bytes_of = [path.read_bytes() for path in originals]
    for i in range(count):
        (made / f"{i:06}.jpg").write_bytes(bytes_of[i % len(bytes_of)] + i.to_bytes(8, "little"))
    time.sleep(3)  # files younger than two seconds are hashed again
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 20000])
    options = parser.parse_args()
    for count in options.counts:
        photos, store = image_files(options.folder, count), options.folder / "memory.fcache"
        shutil.rmtree(store, ignore_errors=True)
        began = time.monotonic()
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(photos), str(store)], stdout=subprocess.PIPE)
        curve: list[float] = []
        first_rows = None
        while child.poll() is None:
            curve.append(anonymous(child.pid))
            if first_rows is None and any(store.glob("shards/*/*.h5")):
                first_rows = time.monotonic() - began
            time.sleep(0.5)
        assert child.stdout is not None
        assert child.returncode == 0
        told = json.loads(child.stdout.read())
        tenth = max(1, len(curve) // 10)
        recording.append(
            "extract_memory",
            {
                "images": count,
                "anonymous_mib_largest": round(max(curve), 1),
                "curve": [round(max(curve[i : i + tenth]), 1) for i in range(0, len(curve), tenth)],
                "first_shard_seconds": first_rows,
                **told,
            },
        )


if __name__ == "__main__":
    main()
