"""How many planted near-duplicates are found, and how many pairs that nobody planted.

    python scripts/bench/near_duplicates.py FOLDER COPY STORE

FOLDER is copied to COPY, and of 40 of its images five versions are added: the same bytes, JPEG quality
60, nine tenths of the size, a crop of 95 %, 8 gray levels brighter. COPY is extracted into STORE.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from pathlib import Path

import numpy as np
from PIL import Image
from recording import append

import featcache as fc
from featcache.metrics import splits
from featcache.metrics.near_duplicates import find

VERSIONS = ("exact", "quality", "size", "crop", "light")


def plant(folder: Path, copy: Path) -> None:
    """Copy the folder and add the versions; a copy that is there is left as it is."""
    if copy.exists():
        return
    for path in folder.rglob("*.jpg"):
        (copy / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy / path.relative_to(folder))
    for path in random.Random(0).sample(sorted(copy.rglob("*.jpg")), 40):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        w, h = image.size
        name = {version: path.with_name(f"{path.stem}__{version}.jpg") for version in VERSIONS}
        shutil.copyfile(path, name["exact"])
        image.save(name["quality"], quality=60)
        small = image.resize((round(0.9 * w), round(0.9 * h)), Image.Resampling.LANCZOS)
        small.save(name["size"], quality=90)
        image.crop((round(0.02 * w), round(0.02 * h), round(0.97 * w), round(0.97 * h))).save(name["crop"], quality=90)
        image.point(lambda value: min(255, value + 8)).save(name["light"], quality=90)


def stem(uri: str) -> str:
    """The image that a file is a version of."""
    return uri.split("__")[0].removesuffix(".jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("folder", "copy", "store"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    plant(options.folder, options.copy)
    fc.extract(options.copy, options.store, name=options.copy.name, progress=True)
    X, _, items = fc.open(options.store).arrays(source=options.copy.name)
    first = {item.sha256: row for row, item in reversed(list(enumerate(items)))}
    rows = np.array(sorted(first.values()))
    began, cpu = time.perf_counter(), time.process_time()
    found = find(lambda at: X[rows[at]], np.arange(len(rows)))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    pairs = rows[found.pairs]
    planted = [stem(items[a].uri) == stem(items[b].uri) for a, b in pairs]
    units = splits.units(items, pairs)
    place = {item.uri: row for row, item in enumerate(items)}
    plain = np.array([row for row in rows if "__" not in items[row].uri])
    before = find(lambda at: X[plain[at]], np.arange(len(plain)))
    together = {
        version: sum(
            bool(units[row] == units[place[f"{stem(uri)}.jpg"]])
            for uri, row in place.items()
            if uri.endswith(f"__{version}.jpg")
        )
        for version in VERSIONS
    }
    append(
        "near_duplicates",
        {
            "source": options.folder.name,
            "items": len(items),
            "pairs_planted": 400,
            "pairs_planted_found": sum(planted),
            "pairs_not_planted_found": len(planted) - sum(planted),
            "threshold": found.threshold,
            "versions_in_one_unit_with_their_original_of_40": together,
            "pairs_found_before_planting": len(before.pairs),
            "note": found.note,
            "seconds": seconds,
            "cpu_seconds": cpu,
        },
    )


if __name__ == "__main__":
    main()
