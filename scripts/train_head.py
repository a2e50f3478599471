"""Train a head on a store, print its score, and predict the labels of images.

Usage: python scripts/train_head.py data/pets.fcache data/pets.fch new-photo.jpg

A starting point for a script of your own; the same from the shell is `featcache train` and
`featcache predict`.
"""

from __future__ import annotations

import argparse

import featcache as fc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", help="a store that extract_features.py made")
    parser.add_argument("head", help="the file to write, *.fch")
    parser.add_argument("images", nargs="*", help="images to predict")
    parser.add_argument("--kind", default="softmax", help="softmax, ridge, knn, …, or module:Class(argument=value)")
    options = parser.parse_args()

    bundle = fc.train(options.store, head=options.kind)
    score = bundle.report["score"]
    print(f"accuracy {score['accuracy']:.3f} ({score['low']:.3f} to {score['high']:.3f}), {score['protocol']}")
    bundle.save(options.head)

    for prediction in fc.load(options.head).predict(options.images) if options.images else []:
        if prediction.problem:
            print(f"{prediction.uri}: {prediction.problem}")
        for label, probability in prediction.labels[:1]:
            print(f"{prediction.uri}: {label} ({probability:.2f})")


if __name__ == "__main__":
    main()
