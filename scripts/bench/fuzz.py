"""A hundred thousand damaged images: what becomes of them, and whether one crashes, hangs or takes too much memory.

    python scripts/bench/fuzz.py [--images N] [--first N] [--workers N]

The images are those of ``tests/images/mutations.py``, read by ``python -m tests.images.fuzzing`` in processes that
are started again after a crash, or after 30 s without an answer. Every 10,000 images a cell is appended to
``results/fuzz.json``; blocks that stand there for the same Pillow and simplejpeg are not done again. Of each image
that crashed, hung or came to something that must not be, the number is kept, and
``python -m tests.images.fuzzing NUMBER 1`` reads it again.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recording import RESULTS, append

ROOT = Path(__file__).parents[2]
BLOCK, PATIENCE_SECONDS = 10_000, 30.0
DECODERS = ("pillow", "simplejpeg")


@dataclass
class Tally:
    """What became of some images; *numbers* are those of images that crashed, hung or came to what must not be."""

    outcomes: Counter[str] = field(default_factory=Counter)
    crashes: list[int] = field(default_factory=list)
    hangs: list[int] = field(default_factory=list)
    wrong: dict[int, str] = field(default_factory=dict)
    peak_mib: int = 0

    def add(self, other: Tally) -> None:
        self.outcomes += other.outcomes
        self.crashes += other.crashes
        self.hangs += other.hangs
        self.wrong |= other.wrong
        self.peak_mib = max(self.peak_mib, other.peak_mib)


def read(first: int, count: int) -> Tally:
    """Have these images read, in as many processes as it takes."""
    tally, at, end = Tally(), first, first + count
    while at < end:
        command = [sys.executable, "-m", "tests.images.fuzzing", str(at), str(end - at)]
        places = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            command, cwd=ROOT, env=places, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            try:
                for line in answers(process):
                    number, became, peak = line.split("\t")
                    if int(number) != at:
                        raise RuntimeError(f"image {at} was to come, not: {line}")
                    if became.startswith("WRONG"):
                        tally.wrong[at] = became
                    tally.outcomes[became.partition(":")[0]] += 1
                    tally.peak_mib = max(tally.peak_mib, int(peak))
                    at += 1
                if at < end:
                    if process.wait() >= 0:  # no signal ended it, so it is this benchmark that is broken
                        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode} at image {at}")
                    tally.crashes.append(at)
                    at += 1
            except TimeoutError:
                tally.hangs.append(at)
                at += 1
            finally:
                process.kill()
    return tally


def answers(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """The process's lines, until it ends; TimeoutError where it says nothing for too long."""
    assert process.stdout is not None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(PATIENCE_SECONDS):
                raise TimeoutError
            came = os.read(process.stdout.fileno(), 1 << 16)
            if not came:
                return
            *lines, rest = (rest + came).split(b"\n")
            yield from (line.decode() for line in lines)


def done_before() -> list[dict[str, Any]]:
    path = RESULTS / "fuzz.json"
    cells = json.loads(path.read_text()) if path.exists() else []
    return [cell for cell in cells if all(cell.get(name) == version(name) for name in DECODERS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    done = {(cell["first"], cell["images"]) for cell in done_before()}
    end = options.first + options.images
    for first in range(options.first, end, BLOCK):
        images = min(BLOCK, end - first)
        if (first, images) in done:
            continue
        began, whole = time.perf_counter(), Tally()
        parts = [len(part) for part in (range(images)[i :: options.workers] for i in range(options.workers))]
        starts = [first + sum(parts[:i]) for i in range(len(parts))]
        with ThreadPoolExecutor(options.workers) as pool:
            for tally in pool.map(read, starts, parts):
                whole.add(tally)
        cell = {
            "first": first,
            "images": images,
            "usable": whole.outcomes["usable"],
            "quarantined": {name: n for name, n in sorted(whole.outcomes.items()) if name not in ("usable", "WRONG")},
            "wrong": whole.wrong,
            "crashes": sorted(whole.crashes),
            "hangs": sorted(whole.hangs),
            "peak_mib": whole.peak_mib,
            "images_per_second": images / (time.perf_counter() - began),
            "workers": options.workers,
            **{name: version(name) for name in DECODERS},
        }
        append("fuzz", cell)
    cells = [cell for cell in done_before() if options.first <= cell["first"] < end]
    total = {name: sum(cell[name] for cell in cells) for name in ("images", "usable")}
    bad = {name: sum(len(cell[name]) for cell in cells) for name in ("wrong", "crashes", "hangs")}
    reasons: Counter[str] = Counter()
    for cell in cells:
        reasons.update(cell["quarantined"])
    print(json.dumps(total | {"quarantined": reasons} | bad | {"peak_mib": max(cell["peak_mib"] for cell in cells)}))


if __name__ == "__main__":
    main()
