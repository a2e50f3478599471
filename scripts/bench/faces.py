"""Matching of faces: accuracy, thresholds on unseen people, calibration, the siamese head, and speed.

    python scripts/bench/faces.py PROBLEM PICTURES FOLDER

PICTURES is a folder of people, one folder each, such as LFW; FOLDER is where the stores are made. PROBLEM is one of

    accuracy    random pairs in ten folds that share no person, seeds 0 to 4, every image scored; and the seconds
                that 6,000 pairs take from vectors in memory
    thresholds  the false accept rate on unseen people for thresholds set for 1e-2 and 1e-3, and what likelihood ratios
                cost there, on 20 splits by people
    siamese     the siamese head on vectors of a network that was not made for faces, on people unseen, seeds 0 to 4
    descriptors torch against dlib's own descriptors on 500 chips, every second one tinted
    chips       the network alone, on images that are aligned chips, against dlib's own on every fifth of them
    speed       images to vectors, against dlib alone on one thread, in alternating rounds of 200 images

A cell is written when its problem is done.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import recording

import featcache as fc
from featcache import faces
from featcache.faces.evaluation import verify_on_folds
from featcache.faces.sample_pairs import draw_pairs
from featcache.metrics.verification import cosine_scores

LAYERS = ["pooled", "blocks.*:mean_std"]


def faces_store(images: Path, folder: Path) -> Path:
    store = folder / "faces.fcache"
    faces.extract(images, store, centre_box=True, progress=True)
    return store


def accuracy(images: Path, folder: Path) -> dict[str, Any]:
    store = faces_store(images, folder)
    cell: dict[str, Any] = {"layers": {}}
    for seed in range(5):
        report = faces.evaluate(store, seed=seed)
        for layer, found in {report.layer: report.verification, **report.others}.items():
            kept = cell["layers"].setdefault(layer, {"accuracy": [], "standard_error": [], "eer": [], "auc": []})
            for name, values in kept.items():
                values.append(getattr(found, name))
        cell |= {"failed": report.verification.failed, "pairs": report.verification.pairs, "found": report.found}
    for kept in cell["layers"].values():
        kept["mean_accuracy"] = statistics.mean(kept["accuracy"])
    X, labels, items = fc.open(store).arrays(layers="mirrored")
    pairs = draw_pairs(labels.tolist(), sha256=[item.sha256 for item in items])
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        verify_on_folds(cosine_scores(X, pairs.images), pairs.same, pairs.fold)
        seconds.append(time.perf_counter() - began)
    return cell | {"seconds_for_6000_pairs": seconds}


def thresholds(images: Path, folder: Path) -> dict[str, Any]:
    store = faces_store(images, folder)
    cell: dict[str, Any] = {}
    for far in (1e-2, 1e-3):
        ratios, excess, eer = [], [], []
        for seed in range(20):
            score = faces.train(store, projection="none", far=far, seed=seed, progress=False).report["score"]
            ratios.append(score["far"]["value"] / far)
            excess.append(score["cllr"] - score["minimal_cllr"])
            eer.append(score["eer"])
        cell[f"far {far:g}"] = {
            "median_ratio": statistics.median(ratios),
            "ratios": ratios,
            "median_cllr_excess": statistics.median(excess),
            "largest_cllr_excess": max(excess),
            "median_eer": statistics.median(eer),
        }
    return cell


def siamese(images: Path, folder: Path) -> dict[str, Any]:
    store = folder / "lite0.fcache"
    fc.extract(images, store, layers=LAYERS, progress=True)
    cell: dict[str, Any] = {name: {"eer": [], "eer_without": [], "seconds": []} for name in ("siamese", "lda")}
    for seed in range(5):
        for name, kept in cell.items():
            report = faces.train(store, projection=name, layers=LAYERS, far=0.05, seed=seed, progress=False).report
            kept["eer"].append(report["score"]["eer"])
            kept["eer_without"].append(report["score"]["eer_without"])
            kept["seconds"].append(report["seconds"])
    for kept in cell.values():
        kept["mean_eer"] = statistics.mean(kept["eer"])
    return cell


def dlib_alone() -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """From an image to a chip, and from a chip to a descriptor, by dlib's own code in one thread."""
    import dlib

    from featcache.backbones.families.dlib_weights import FACE_NETWORK, FIVE_LANDMARKS, installed_path

    detector = dlib.get_frontal_face_detector()
    landmarks = dlib.shape_predictor(str(installed_path(FIVE_LANDMARKS)))
    network = dlib.face_recognition_model_v1(str(installed_path(FACE_NETWORK)))

    def chip(image: np.ndarray) -> np.ndarray:
        boxes = detector(image)
        height, width = image.shape[:2]
        middle = dlib.rectangle(width // 4, height // 4, 3 * width // 4, 3 * height // 4)
        return np.asarray(dlib.get_face_chip(image, landmarks(image, boxes[0] if len(boxes) else middle), 150, 0.25))

    return chip, lambda chip: np.asarray(network.compute_face_descriptor(chip))


def loaded(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))


def descriptors(images: Path, folder: Path) -> dict[str, Any]:
    chip, descriptor = dlib_alone()
    paths = sorted(images.rglob("*.jpg"))[:500]
    chips = [chip(loaded(path)) for path in paths]
    tint = np.array([1.0, 0.8, 0.6])
    chips = [(c * tint).astype(np.uint8) if i % 2 else c for i, c in enumerate(chips)]
    backbone = fc.backbones.get("dlib:face_resnet")
    layers = backbone.resolve_layers(["pooled"])
    ours = np.concatenate(
        [backbone.forward(np.stack(chips[a : a + 16]), layers)["pooled"] for a in range(0, len(chips), 16)]
    )
    theirs = np.stack([descriptor(c) for c in chips])
    return {"chips": len(chips), "largest_difference": float(np.abs(ours - theirs).max())}


def speed(images: Path, folder: Path) -> dict[str, Any]:
    chip, descriptor = dlib_alone()
    paths = sorted(images.rglob("*.jpg"))[::9][:200]
    source = folder / "some"
    for path in paths:
        (source / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, source / path.parent.name)
    seconds: dict[str, list[float]] = {"dlib_one_thread": [], "featcache": []}
    faces.extract(source, folder / "warm.fcache", layers=["pooled"], progress=False)
    for turn in range(3):
        began = time.perf_counter()
        for path in paths:
            descriptor(chip(loaded(path)))
        seconds["dlib_one_thread"].append(time.perf_counter() - began)
        store = folder / f"speed-{turn}.fcache"
        began = time.perf_counter()
        faces.extract(source, store, layers=["pooled"], progress=False)
        seconds["featcache"].append(time.perf_counter() - began)
        shutil.rmtree(store)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return {"images": len(paths), "seconds": seconds, "ratio": medians["dlib_one_thread"] / medians["featcache"]}


def chips(images: Path, folder: Path) -> dict[str, Any]:
    """The network alone: images that are aligned chips already, as `featcache.extract` reads them."""
    from PIL import Image

    chip, descriptor = dlib_alone()
    source = folder / "chips"
    source.mkdir(exist_ok=True)
    for number, path in enumerate(sorted(images.rglob("*.jpg"))[::2]):
        Image.fromarray(chip(loaded(path))).save(source / f"{number:03}.png")
    paths = sorted(source.iterdir())
    rates: dict[str, list[float]] = {"dlib_one_thread": [], "featcache": []}
    fc.extract(source, folder / "warm-chips.fcache", backbone="dlib:face_resnet", progress=False)
    for turn in range(3):
        began = time.perf_counter()
        for path in paths[::5]:
            descriptor(loaded(path))
        rates["dlib_one_thread"].append(len(paths[::5]) / (time.perf_counter() - began))
        store = folder / f"chips-{turn}.fcache"
        began = time.perf_counter()
        fc.extract(source, store, backbone="dlib:face_resnet", progress=False)
        rates["featcache"].append(len(paths) / (time.perf_counter() - began))
        shutil.rmtree(store)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    ratio = medians["featcache"] / medians["dlib_one_thread"]
    return {"chips": len(paths), "chips_per_second": rates, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    problems = (accuracy, thresholds, siamese, descriptors, speed, chips)
    parser.add_argument("problem", choices=[problem.__name__ for problem in problems])
    parser.add_argument("images", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    run = next(problem for problem in problems if problem.__name__ == options.problem)
    recording.append("faces", {"problem": options.problem} | run(options.images, options.folder))


if __name__ == "__main__":
    main()
