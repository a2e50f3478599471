"""Extract the features of a folder of images and look at them.

Usage: python scripts/extract_features.py photos data/pets.fcache

Run it twice: the second time nothing is computed. A starting point for a script of your own; the same
from the shell is `featcache extract`.
"""

from __future__ import annotations

import argparse

import featcache as fc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a folder of images, one folder a class")
    parser.add_argument("store", help="the store; made if it is missing")
    parser.add_argument("--backbone", default="bundled:efficientnet_lite0")
    parser.add_argument("--layers", nargs="+", default=["pooled"])
    options = parser.parse_args()

    run = fc.extract(options.source, options.store, backbone=options.backbone, layers=options.layers, progress=True)
    print(f"{run.items} images: {run.computed} computed, {run.reused} reused, {run.quarantined} unusable")

    store = fc.open(options.store)
    for layer in store.layer_names(options.layers):
        X, y, items = store.arrays(layers=layer)
        print(f"{layer}: {X.shape} {X.dtype}, the first is {items[0].uri} with label {y[0]}")


if __name__ == "__main__":
    main()
