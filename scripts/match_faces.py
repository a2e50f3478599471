"""Match faces: learn from a folder of people what a distance means, then compare two images.

Usage: python scripts/match_faces.py people data/people.fcache a.jpg b.jpg

A starting point for a script of your own; the same from the shell is `featcache faces`.
"""

from __future__ import annotations

import argparse

import featcache as fc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a folder of images, one folder a person")
    parser.add_argument("store", help="the store; made if it is missing")
    parser.add_argument("images", nargs=2, help="two images to compare")
    parser.add_argument("--far", type=float, default=1e-2, help="false accept rate to set the threshold for")
    options = parser.parse_args()

    run = fc.faces.extract(options.source, options.store, progress=True)
    print(f"{run.items} images, face found in {run.first_pass + run.second_pass}, {run.quarantined} unusable")

    head = fc.faces.train(options.store, projection="none", far=options.far)
    match = fc.faces.verify(*options.images, head=head, prior=0.5)
    print(f"distance {match.distance:.3f}, accepted up to {match.threshold:.3f}")
    print(f"{'same person' if match.decision else 'different people'}, probability {match.probability:.3f}")


if __name__ == "__main__":
    try:
        main()
    except fc.FeatcacheError as error:
        raise SystemExit(f"error: {error}") from error
