"""Made the files in `data/`, with featcache at commit e261107. It is not run again: that they are old is their use.

It ran as ``PYTHONPATH=<checkout of e261107> python tests/old/make.py``, and stays to say what the files hold. The
sources lie under /tmp/featcache-old, as far as the stores know: nothing is there when the tests run. Two things are
left out for their size: the backup of the catalogue, which is a copy of it, and the tensors of ``scratch.fch``
(`network.scratch_head`).
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from network import DATA, WEIGHTS, blank, drawn, kernels, network, scratch_head
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from sklearn.linear_model import RidgeClassifier
from threadpoolctl import threadpool_limits

import featcache as fc
from featcache.backbones import get
from featcache.backbones.own_weights import with_weights
from featcache.heads import make_head
from featcache.heads.linear import LinearForm
from featcache.layer_use import LayerUse
from featcache.recipe import StandardTransform

sys.path.append(str(Path(__file__).parents[2]))
from tests.faces.drawing import draw_face

ROOT = Path("/tmp/featcache-old")
STORE = ROOT / "store.fcache"
MORE = ROOT / "more.fcache"  # what there are too many rows of to keep
HEADS = DATA / "heads"
CLASSES = ("ash", "birch", "čedar")
EACH = 6
FOLDERS = ("ash", "birch", "cedar")
SHOWN = ("ash/0.jpg", "birch/2.jpg", "cedar/4.png", "birch/5.png")  # of each kind of file one
BLOCKS = ["body.0:mean_std", "body.1:mean_std", "pooled"]
PRIOR = 0.3
QUIET: dict[str, Any] = {"progress": False}


def main() -> None:
    """Make everything anew."""
    for folder in (ROOT, DATA):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    HEADS.mkdir()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        draw()
        transform = StandardTransform((16,), (16, 16), "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        backbone = fc.Backbone.from_module(network(), transform=transform, name="old", axes="NCHW")
        spaces = make_store(backbone)
        heads = classifiers(backbone, spaces) | {"scratch": scratch()}
        matching = matchers(backbone, spaces)
        for name, bundle in (heads | matching).items():
            bundle.save(HEADS / f"{name}.fch")
        keep_header(HEADS / "scratch.fch")
        for name, source in (("pictures", "pictures"), ("few", "few"), ("faces", "faces")):
            shutil.copytree(ROOT / source, DATA / name)
        shutil.copytree(STORE, DATA / STORE.name, ignore=shutil.ignore_patterns("*.backup.sqlite", "tmp"))
        write_expected(spaces, heads, matching, backbone)
    (HEADS / "scratch.fch").unlink()


# What is drawn.


def draw() -> None:
    draw_weights()
    table = draw_pictures(ROOT / "pictures", FOLDERS, EACH)
    (ROOT / "pictures" / "broken.png").write_text("no image")
    called = dict(zip(FOLDERS, CLASSES, strict=True))
    rows = [
        (uri, called[name], "test" if i % 3 == 2 else "train", f"{name}-pair" if i < 2 else "")
        for uri, name, i, _ in table
    ]
    write_csv(ROOT / "pictures" / "pictures.csv", "path,label,split,group", [*rows, ("broken.png", "ash", "train", "")])
    bright = [(uri, f"{called[name]}|bright" if mean > 85 else called[name]) for uri, name, _, mean in table]
    write_csv(DATA / "multilabel.csv", "path,label", bright)
    draw_pictures(ROOT / "people", [f"p{person:02}" for person in range(16)], 3)
    draw_few(ROOT / "few", 1)
    draw_few(ROOT / "many", 10)
    draw_faces(ROOT / "crowd", people=16, each=2)
    draw_faces(ROOT / "faces", people=2, each=2)
    (ROOT / "faces" / "p0" / "1.jpg").unlink()
    draw_face(80, skin=(150, 105, 80), turned=3).save(ROOT / "faces" / "p0" / "small.jpg", quality=80)
    Image.new("RGB", (60, 60), (200, 30, 30)).save(ROOT / "faces" / "p0" / "red.png")


def draw_weights() -> None:
    module, generator = blank(), torch.Generator().manual_seed(16)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.6 - 0.2)
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d) and part.running_var is not None:
                part.running_var.fill_(1.0)
    save_file(module.state_dict(), WEIGHTS)


def write_csv(path: Path, header: str, rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def draw_pictures(root: Path, classes: Sequence[str], each: int) -> list[tuple[str, str, int, float]]:
    """Noise whose colour tells the class, more or less: URI, class, number and mean of each picture."""
    rng = np.random.default_rng(0)
    table = []
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        tint = 60 * np.array([number % 3 == 0, number % 3 == 1, number % 3 == 2]) + 25 * (number // 3)
        for i in range(each):
            pixels = (rng.integers(0, 70, (16, 20, 3)) + tint + rng.integers(0, 60, 3)).clip(0, 255)
            picture = Image.fromarray(pixels.astype(np.uint8))
            uri = f"{name}/{i}.{'png' if i >= 4 else 'jpg'}"
            if i == 5:
                picture = picture.convert("RGBA" if number else "L")
            exif = Image.Exif()
            if i == 2:
                exif[274] = 6  # lies on its side
            picture.save(root / uri, quality=75, **({"exif": exif} if i == 2 else {}))
            table.append((uri, name, i, float(pixels.mean())))
    return table


def draw_few(root: Path, count: int) -> None:
    """Smooth pictures of two classes, for the network that comes with featcache."""
    rng = np.random.default_rng(1)
    root.mkdir()
    rows = []
    for i in range(count):
        pixels = rng.integers(0, 256, (6 + 3 * (i % 2), 8, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((120, 90), Image.Resampling.BICUBIC)
        picture.filter(ImageFilter.GaussianBlur(1)).save(root / f"{i}.jpg", quality=70)
        rows.append((f"{i}.jpg", ("coarse", "fine")[i % 2]))
    write_csv(root / f"{root.name}.csv", "path,label", rows)


def draw_faces(root: Path, people: int, each: int) -> None:
    """Faces of some people, which differ a little."""
    rng = np.random.default_rng(2)
    for person in range(people):
        (root / f"p{person}").mkdir(parents=True)
        skin = rng.integers(90, 226, 3)
        for i in range(each):
            own = tuple(int(v) for v in (skin + rng.integers(-12, 13, 3)).clip(0, 255))
            around = tuple(int(v) for v in rng.integers(40, 140, 3))
            face = draw_face(150, skin=own, around=around, turned=float(rng.uniform(-8, 8)))
            face.save(root / f"p{person}" / f"{i}.jpg", quality=80)


# What is kept.


def make_store(backbone: Any) -> dict[str, str]:
    """The store, and the fingerprints of its spaces."""
    source = ROOT / "pictures" / "pictures.csv"
    old = fc.extract(source, STORE, backbone=backbone, layers=BLOCKS, views=2, **QUIET)
    fc.extract(source, STORE, backbone=backbone, layers=["body.0:none"], **QUIET)
    bfloat16 = fc.extract(
        ROOT / "few" / "few.csv", STORE, precision="bfloat16", runtime="openvino", dtype="float16", **QUIET
    )
    faces = fc.faces.extract(ROOT / "faces", STORE, layers=["mirrored"], **QUIET)
    return {"old": old.space, "bfloat16": bfloat16.space, "faces": faces.space, "detection": faces.detection}


def classifiers(backbone: Any, spaces: dict[str, str]) -> dict[str, fc.Bundle]:
    """A head of each kind that names labels."""
    at: dict[str, Any] = {"source": "pictures", "space": spaces["old"], **QUIET}
    heads = {"all-blocks": fc.multilayer(STORE, backbone=backbone, **at)}
    copy = shutil.copytree(STORE, ROOT / "copy.fcache")  # these keep records of their training in the store
    schedule = fc.Schedule(epochs=20, rate=1e-3, batch_size=4, patience=20, label_smoothing=0.1)
    heads["tune"] = fc.tune(copy, "body.1", views=1, schedule=schedule, seed=1, backbone=backbone, **at)
    heads["tune-new"] = fc.tune(copy, "pooled", init="new", hidden=(6,), views=2, backbone=backbone, **at)
    heads["finetune"] = fc.finetune(copy, schedule=schedule, seed=1, backbone=backbone, **at)
    for name in ("softmax", "ridge", "knn", "centroid", "logreg", "torch"):
        heads[name] = fc.train(STORE, name, layers="pooled", **at)
    heads["mlp"] = fc.train(STORE, make_head("mlp").set_params(hidden=(6, 5)), layers=BLOCKS, **at)
    heads["margin"] = fc.train(STORE, RidgeClassifier(), layers="pooled", **at)
    heads["multilabel"] = fc.train(
        STORE, "softmax", task="multilabel", labels=DATA / "multilabel.csv", layers=BLOCKS, **at
    )
    X, y, _ = fc.open(STORE).arrays("train", "pooled", source="pictures", space=spaces["old"])
    np.savez(ROOT / "features.npz", features=X, labels=y)
    heads["from-npz"] = fc.train(ROOT / "features.npz", "softmax", **QUIET)
    fc.extract(ROOT / "many" / "many.csv", MORE, **QUIET)
    heads["bundled"] = fc.train(MORE, "ridge", **QUIET)
    return heads


def scratch() -> fc.Bundle:
    """A whole network that began with random weights: as `finetune` makes it, but for the weights themselves."""
    base = get("scratch:small_cnn")
    state = with_names(base.blank().module.state_dict(), "network.")
    weights = {name.removeprefix("network."): tensor for name, tensor in state.items()}
    form = LinearForm(drawn("weight", "F32", (3, 128)), drawn("bias", "F32", (3,)), CLASSES, "softmax")
    return fc.Bundle(
        head="finetune", classes=CLASSES, layers=(LayerUse("pooled", (128,), 1.0),), form=form, weights=weights,
        recipe=with_weights(base, weights).recipe, trained_on=np.zeros((1, 32), np.uint8), fitted_on=1,
        report={"score": None, "strategy": "finetune", "init": "scratch"},
    )  # fmt: skip


def with_names(state: dict[str, torch.Tensor], prefix: str) -> dict[str, np.ndarray]:
    kinds = {torch.float32: "F32", torch.int64: "I64"}
    return {prefix + name: drawn(prefix + name, kinds[t.dtype], tuple(t.shape)) for name, t in state.items()}


def keep_header(path: Path) -> None:
    data = path.read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    assert scratch_head(header) == data
    path.with_suffix(".header").write_bytes(header)


def matchers(backbone: Any, spaces: dict[str, str]) -> dict[str, fc.Bundle]:
    """A head of each kind that compares two images."""
    fc.faces.extract(ROOT / "crowd", MORE, layers=["mirrored"], **QUIET)
    people = fc.extract(ROOT / "people", MORE, backbone=backbone, **QUIET)
    at: dict[str, Any] = {"far": 0.2, "source": "crowd", "space": spaces["faces"], **QUIET}
    made = {f"match-{name}": fc.faces.train(MORE, projection=name, **at) for name in ("none", "siamese")}
    made["match-pictures"] = fc.faces.train(
        MORE, projection="siamese", **(at | {"source": "people", "space": people.space})
    )
    return made


# What it answered.


def write_expected(
    spaces: dict[str, str], heads: dict[str, fc.Bundle], matching: dict[str, fc.Bundle], backbone: Any
) -> None:
    store = fc.open(STORE)
    numbers: list[np.ndarray] = []
    vectors = []
    for space, source in (("old", "pictures"), ("bfloat16", "few"), ("faces", "faces"), ("detection", "faces")):
        for layer in store.space(spaces[space]).layers:
            views = store.view_names(layers=layer, space=spaces[space])
            X, _, items = store.arrays(layers=layer, source=source, space=spaces[space], views=views)
            vectors.append(
                {
                    "space": space, "source": source, "layer": layer, "views": views, "shape": X.shape,
                    "items": len(items), "sha256": digest(X.tobytes()),
                }
            )  # fmt: skip
    answers: dict[str, Any] = {
        "made_with": kernels(),
        "spaces": spaces,
        "status": {name: value for name, value in store.status().items() if name != "store"},
        "verify": fc.verify(STORE).to_dict(),
        "items": {
            source: [
                [item.uri, item.sha256.hex()[:12], item.label, item.split, item.group]
                for item in store.items(source=source)
            ]
            for source in store.sources()
        },
        "vectors": vectors,
        "heads": {},
        "matching": {},
    }
    for name in heads:
        answers["heads"][name] = answers_of(name, store, spaces, numbers, backbone)
    for name in matching:
        answers["matching"][name] = comparisons_of(name, store, spaces, numbers, backbone)
    faces = [DATA / "faces" / name for name in ("p0/0.jpg", "p1/0.jpg")]
    answers["uncalibrated"] = fc.faces.verify(*faces).to_dict()
    np.save(DATA / "expected.npy", np.concatenate(numbers))
    text = json.dumps(answers, ensure_ascii=False, separators=(",", ":"))
    (DATA / "expected.json").write_text(text + "\n", encoding="utf-8")


def keep(array: np.ndarray, numbers: list[np.ndarray]) -> list[int]:
    """Add an array to those of expected.npy; where it begins, and its shape."""
    assert array.dtype == np.float64
    begin = sum(len(one) for one in numbers)
    numbers.append(array.ravel())
    return [begin, *array.shape]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def answers_of(
    name: str, store: Any, spaces: dict[str, str], numbers: list[np.ndarray], backbone: Any
) -> dict[str, Any]:
    bundle = fc.load(HEADS / f"{name}.fch")
    given = None if name in ("bundled", "scratch", "from-npz") else backbone
    layers = [use.name for use in bundle.layers]
    answer: dict[str, Any] = {
        "head": bundle.head, "task": bundle.task, "classes": bundle.classes, "layers": layers,
        "chosen": bundle.chosen, "fitted_on": bundle.fitted_on, "trained_on": len(bundle.trained_on),
        "of_module": given is not None,
    }  # fmt: skip
    source = "few" if name == "bundled" else "pictures"
    if name not in ("bundled", "scratch"):  # the store has vectors for it
        ready = bundle if given is None else bundle.on(given)
        layers = ["pooled"] if name == "from-npz" else layers
        answer["stored"] = layers
        X = store.arrays(layers=layers, source=source, space=spaces["old"])[0]
        p = ready.predict_proba_vectors(X)
        if p is not None:
            answer["probabilities"] = keep(p, numbers)
        labels = ready.predict_vectors(X)
        known = labels if labels.ndim == 2 else [bundle.classes.index(label) for label in labels]
        answer["predicted"] = np.asarray(known, dtype=int).tolist()
    if name != "from-npz":
        shown = [f"{source}/{uri}" for uri in (SHOWN if source == "pictures" else ("0.jpg",))]
        predictions = bundle.predict([DATA / path for path in shown], top=9, backbone=given)
        answer["images"] = {path: one.labels for path, one in zip(shown, predictions, strict=True)}
    if given is not None:
        labels = DATA / "multilabel.csv" if name == "multilabel" else None
        space = None if bundle.weights is not None else spaces["old"]  # its network's vectors are in no space
        report = fc.evaluate(bundle, STORE, source="pictures", space=space, labels=labels, backbone=given, **QUIET)
        fields = ("n", "accuracy", "low", "high", "macro_f1", "log_loss", "overlap", "mean_average_precision")
        answer["evaluate"] = {field: value for field, value in report.to_dict().items() if field in fields}
    return answer


def comparisons_of(
    name: str, store: Any, spaces: dict[str, str], numbers: list[np.ndarray], backbone: Any
) -> dict[str, Any]:
    bundle = fc.load(HEADS / f"{name}.fch")
    of_pictures = name == "match-pictures"
    source, space = ("pictures", "old") if of_pictures else ("faces", "faces")
    X = store.arrays(layers=[use.name for use in bundle.layers], source=source, space=spaces[space])[0]
    Z = bundle.scaled(X)
    scores, calibration = bundle.matching.scores(Z[:-1], Z[1:]), bundle.matching.calibration
    stacked = np.stack([scores, calibration.probability(scores, PRIOR)])
    images = [f"pictures/{uri}" for uri in SHOWN[:3]]
    if not of_pictures:
        images = ["faces/p1/0.jpg", "faces/p1/1.jpg", "faces/p0/small.jpg"]
    first = DATA / images[0]
    ask: Callable[[str], Any] = lambda other: fc.faces.verify(  # noqa: E731
        first, DATA / other, head=bundle, prior=PRIOR, backbone=backbone if of_pictures else None
    )
    return {
        "source": source, "space": space, "task": bundle.task, "layers": [use.name for use in bundle.layers],
        "people": len(bundle.classes), "scores": keep(stacked, numbers),
        "decisions": calibration.decide(scores).tolist(), "images": images,
        "verify": [ask(other).to_dict() for other in images[1:]],
    }  # fmt: skip


if __name__ == "__main__":
    main()
