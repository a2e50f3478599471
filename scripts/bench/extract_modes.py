"""Whether a head answers the same on the vectors of every way of extracting.

    python scripts/bench/extract_modes.py FOLDER PHOTOS [--name NAME]

PHOTOS has one folder a class; FOLDER takes the stores. The reference is the published transform and eager torch at
float32 (Pillow decodes, resizes whole images, then crops). Each other mode extracts the same images: the defaults
(``openvino``), the defaults in eager torch (``torch``), DCT-scaled decoding (``scaled``), and ``bfloat16`` where the
machine computes so. One softmax head, at the C chosen on the reference, is fitted on each mode's vectors of four
fifths of the images and asked about the other fifth; predictions that differ from the reference's are counted, and
likewise those of the reference's own head when it is given the mode's vectors.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

import featcache as fc
from featcache.backbones import Backbone, get
from featcache.backbones.compute import has_bfloat16
from featcache.heads import resolve_head
from featcache.images.transforms import published

sys.path.insert(0, str(Path(__file__).parent))
import recording

BACKBONE = "bundled:efficientnet_lite0"


def modes() -> dict[str, Backbone]:
    plain = get(BACKBONE)
    found = {
        "reference": plain.with_runtime(runtime="torch").with_pixels(published(plain.recipe.pixels)),
        "openvino": plain.with_runtime(runtime="openvino"),
        "torch": plain.with_runtime(runtime="torch"),
        "scaled": plain.scaled(),
    }
    if has_bfloat16():
        found["bfloat16"] = plain.with_runtime(precision="bfloat16")
    return found


def vectors(photos: Path, store: Path, backbone: Backbone) -> tuple[np.ndarray, np.ndarray]:
    shutil.rmtree(store, ignore_errors=True)
    fc.extract(photos, store, backbone=backbone)
    X, y, items = fc.open(store).arrays()
    order = np.argsort([item.uri for item in items])
    return X[order], np.asarray(y)[order]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--name", help="of the data in the results; the folder's own by default")
    options = parser.parse_args()
    X: dict[str, np.ndarray] = {}
    for mode, backbone in modes().items():
        X[mode], y = vectors(options.photos, options.folder / f"{mode}.fcache", backbone)
    train_rows, test = train_test_split(np.arange(len(y)), test_size=0.2, stratify=y, random_state=0)
    chosen = resolve_head("softmax").make().fit(X["reference"][train_rows], y[train_rows])
    heads = {
        mode: resolve_head("softmax").make().set_params(Cs=[chosen.C_]).fit(vectors[train_rows], y[train_rows])
        for mode, vectors in X.items()
    }
    right = heads["reference"].predict(X["reference"][test])
    for mode in X:
        said, given = heads[mode].predict(X[mode][test]), heads["reference"].predict(X[mode][test])
        a, b = X[mode].astype(np.float64), X["reference"].astype(np.float64)
        lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        recording.append(
            "extract_modes",
            {
                "data": options.name or options.photos.name,
                "backbone": BACKBONE,
                "mode": mode,
                "images": len(y),
                "scored": len(test),
                "C": chosen.C_,
                "accuracy": round(float((said == y[test]).mean()), 5),
                "flipped": int((said != right).sum()),
                "flipped_same_head": int((given != right).sum()),
                "cosine_least": float(((a * b).sum(axis=1) / lengths[0] / lengths[1]).min()),
                "relative_error_largest": float((np.linalg.norm(a - b, axis=1) / lengths[1]).max()),
            },
        )


if __name__ == "__main__":
    main()
