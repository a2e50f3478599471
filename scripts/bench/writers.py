"""Several processes extract into one store at once: whether the union is complete, and what it costs.

    python scripts/bench/writers.py FOLDER [--images 400] [--writers 1 2 4]

FOLDER takes the stores. Each process goes through the same images (some of the demo's textiles), with the same
network or each with one of its own, on one thread, and seals every half second, so that their shards interleave.
All begin at the same moment; loading torch is not in the time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import featcache as fc
from featcache.cli.demo import textile_folder

sys.path.insert(0, str(Path(__file__).parent))
import recording

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Barrier

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "featcache.extraction", "featcache.backbones", "featcache.images.sources"])


def extract(photos: Path, store: Path, limit: int, seed: int, begin: Barrier, answer: Connection) -> None:
    """One writer: its report, or what went wrong, goes to *answer*."""
    import torch

    from featcache.backbones import tiny_backbone
    from featcache.store import writer

    torch.set_num_threads(1)
    writer.SEAL_SECONDS = 0.5
    backbone = tiny_backbone(seed, 64, 128)
    backbone.resolve_layers(["pooled"])
    begin.wait()
    try:
        report = fc.extract(
            photos, store, backbone=backbone, limit=limit, config=fc.ExtractionConfig(workers=1), progress=False
        )
        answer.send(report.to_dict())
    except Exception as error:
        answer.send(repr(error))


def together(photos: Path, store: Path, limit: int, seeds: list[int]) -> tuple[float, list[dict[str, Any]], list[str]]:
    """A writer for each seed; the seconds until all are done, their reports, and their errors."""
    begin = CONTEXT.Barrier(len(seeds) + 1)
    pipes, processes = [CONTEXT.Pipe(duplex=False) for _ in seeds], []
    for seed, (_, theirs) in zip(seeds, pipes, strict=True):
        processes.append(CONTEXT.Process(target=extract, args=(photos, store, limit, seed, begin, theirs)))
        processes[-1].start()
    begin.wait()
    began = time.monotonic()
    said = [ours.recv() for ours, _ in pipes]
    seconds = time.monotonic() - began
    for process in processes:
        process.join()
    errors = [s for s in said if isinstance(s, str)] + [f"exit {p.exitcode}" for p in processes if p.exitcode]
    return seconds, [s for s in said if isinstance(s, dict)], errors


def contents(store: Path) -> dict[str, tuple[list[tuple[object, ...]], np.ndarray]]:
    """Items and vectors by space."""
    opened, found = fc.open(store), {}
    for space in opened.spaces:
        vectors, _, items = opened.arrays(space=space.fingerprint)
        found[space.fingerprint] = ([(i.uri, i.sha256, i.label) for i in items], vectors)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    photos, images = textile_folder(), options.images
    whole, store = options.folder / "alone.fcache", options.folder / "shared.fcache"
    shutil.rmtree(whole, ignore_errors=True)
    # What each network gives when nobody else writes.
    alone = [together(photos, whole, images, [seed]) for seed in range(max(options.writers))]
    assert not any(errors for *_, errors in alone)
    right = contents(whole)
    one = min(seconds for seconds, *_ in alone)
    for recipes in ("the same", "different"):
        for count in options.writers:
            seeds = [0] * count if recipes == "the same" else list(range(count))
            shutil.rmtree(store, ignore_errors=True)
            seconds, reports, errors = together(photos, store, images, seeds)
            verified = fc.verify(store, progress=False)
            held = contents(store)
            worst = max(
                float((np.linalg.norm(v - right[f][1], axis=1) / np.linalg.norm(right[f][1], axis=1)).max())
                for f, (_, v) in held.items()
            )
            # Rows that shards hold: those the catalogue does not name were computed twice.
            ((lying,),) = fc.open(store).catalogue.query("i", "SELECT sum(rows) FROM shards")
            recording.append(
                "writers",
                {
                    "writers": count,
                    "recipes": recipes,
                    "images": images,
                    "errors": errors,
                    "complete": len(held) == len(set(seeds)) and all(held[f][0] == right[f][0] for f in held),
                    "rows_named": verified.rows,
                    "rows_wanted": images * len(set(seeds)),
                    "rows_in_shards": lying,
                    "shards": verified.shards,
                    "verify_ok": verified.ok and not verified.unnamed,
                    "worst_relative_error": worst,
                    "computed_by_each": [report["computed"] for report in reports],
                    "seconds": round(seconds, 2),
                    "seconds_of_one_alone": round(one, 2),
                },
            )


if __name__ == "__main__":
    main()
