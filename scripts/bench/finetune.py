"""What caching the frozen part saves: an epoch of the later layers from the cache, and with the first ones recomputed.

    python scripts/bench/finetune.py speed STORE [--from-layers blocks.5 blocks.6] [--rounds 3] [--items 320]
    python scripts/bench/finetune.py accuracy STORE [--from-layer blocks.6] [--epochs 10]

STORE has the Lite0 vectors of a source whose images are where it knows them.

``speed``: both sides are eager torch in channels-last and float32, the same suffix, output, AdamW and batches of 32.
Bare parts are measured in the same rounds: ``decode`` (decoding and augmenting in threads), ``prefix`` (the frozen
part on images in memory) and ``suffix`` (training steps on activations in memory); ``bound`` is (decode + prefix +
suffix) / suffix, ``gain`` is the epoch with all recomputed over the epoch from the cache.

``accuracy``: the same layers fine-tuned from four cached views, and from images in a new view every epoch, each with
its best epoch, scored on the same items; the difference has a paired bootstrap interval over the items.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import featcache as fc
from featcache.backbones import for_recipe
from featcache.backbones.split import SplitNetwork, split_network
from featcache.core.progress import Silent
from featcache.extraction.stored_source import known_images
from featcache.finetuning import loop
from featcache.finetuning.batches import CachedBatches, ImageBatches, ItemImages, activations_in_order, images_in_order
from featcache.finetuning.config import PRETRAINED
from featcache.finetuning.linear_probe import linear_probe_init
from featcache.finetuning.validation import validation_rows
from featcache.training.dataset import FeatureDataset
from featcache.training.holdout import train_test_split
from featcache.training.partial_model import frozen_vectors

sys.path.insert(0, str(Path(__file__).parent))
import recording

BATCH = 32


class _ReachedError(Exception):
    """The prefix has been run."""


class Prefix(nn.Module):
    """The frozen part of a network and nothing behind it."""

    def __init__(self, network: Any, cut: SplitNetwork) -> None:
        super().__init__()
        self.network, self.scaled = network.module, network.normalize
        self.found: Tensor | None = None
        network.module.get_submodule(cut.cached.rpartition(":")[0]).register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.found = output
        raise _ReachedError

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode(), contextlib.suppress(_ReachedError):
            self.network(self.scaled(x))
        assert self.found is not None
        return self.found.clone()


def stepper(cut: SplitNetwork, classes: int) -> Callable[[Tensor, Tensor], None]:
    """One training step of the suffix and an output on activations."""
    with torch.inference_mode():
        width = cut.tail(torch.zeros(2, *cut.shape)).shape[1]
    output = nn.Linear(width, classes)
    model = nn.Sequential(cut.tail.to(memory_format=torch.channels_last), output).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        x = x.reshape(-1, *cut.shape)
        loss = nn.functional.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y)
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def drained(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


def opened(store: Path, layer: str) -> tuple[Any, Any, SplitNetwork, FeatureDataset]:
    found = fc.open(store)
    backbone = for_recipe(found.space().recipe)
    cut = split_network(backbone.network, layer)
    return found, backbone, cut, FeatureDataset.from_store(found, cut.cached, views=True)


def images_of(found: Any, backbone: Any, dataset: FeatureDataset) -> ItemImages:
    there = known_images(found, dataset.items[0].source, dataset.items, [])
    return ItemImages(backbone, dataset.items, [there[item.uri] for item in dataset.items], 0)


def speed(store: Path, layer: str, rounds: int, items: int) -> dict[str, Any]:
    fc.finetune(store, layer, config=fc.TrainingConfig(epochs=1), progress=False)  # puts the activations into the store
    found, backbone, cut, dataset = opened(store, layer)
    rows = np.arange(len(dataset.y))[:items]
    class_ids = np.unique(dataset.y, return_inverse=True)[1][rows]
    step = stepper(cut, len(set(dataset.y.tolist())))
    cached = CachedBatches(dataset, rows, class_ids, BATCH, 0)
    decoded = ImageBatches(images_of(found, backbone, dataset), rows, class_ids, BATCH, 0)
    prefix = Prefix(backbone.network, cut)
    pixels, activations = next(decoded(1)), next(cached(1))
    step(*activations)

    def recomputed(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in decoded(epoch):
            yield prefix(x), y

    taken: dict[str, list[float]] = {name: [] for name in ("decode", "prefix", "suffix", "cached", "recomputed")}
    work: dict[str, Callable[[int], Iterable[Any]]] = {
        "decode": decoded,
        "prefix": lambda _: (prefix(pixels[0]) for _ in range(cached.steps)),
        "suffix": lambda _: (step(*activations) for _ in range(cached.steps)),
        "cached": lambda epoch: (step(x, y) for x, y in cached(epoch)),
        "recomputed": lambda epoch: (step(x, y) for x, y in recomputed(epoch)),
    }
    for turn in range(1, rounds + 1):
        for name, made in work.items():
            began = time.perf_counter()
            drained(made(turn))
            taken[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) for name, values in taken.items()}
    bound = (median["decode"] + median["prefix"] + median["suffix"]) / median["suffix"]
    gain = median["recomputed"] / median["cached"]
    return {
        "problem": "speed", "from_layer": layer, "items": len(rows), "rounds": rounds, "seconds": taken,
        "bound": round(bound, 2), "gain": round(gain, 2), "of_the_bound": round(gain / bound, 3),
    }  # fmt: skip


def accuracy(store: Path, layer: str, epochs: int) -> dict[str, Any]:
    config = replace(PRETRAINED, epochs=epochs, patience=epochs)
    fc.finetune(store, layer, config=fc.TrainingConfig(epochs=1), progress=False)  # puts the activations into the store
    found, backbone, cut, dataset = opened(store, layer)
    train_rows, test, _ = train_test_split(dataset, None, 0, found, Silent())
    fit, validation = validation_rows(dataset, train_rows, test, 0, Silent())
    class_ids = np.unique(dataset.y, return_inverse=True)[1]
    output, _ = linear_probe_init(frozen_vectors(cut, dataset.read), dataset, fit, 0, Silent())
    images = images_of(found, backbone, dataset)
    prefix = Prefix(backbone.network, cut).requires_grad_(False)
    sides: dict[str, tuple[nn.Module, Any, Callable[[np.ndarray], Iterable[tuple[Tensor, Tensor]]]]] = {
        "cached": (
            nn.Unflatten(1, cut.shape),
            CachedBatches(dataset, fit, class_ids[fit], config.batch_size, 0),
            lambda rows: activations_in_order(dataset, rows, class_ids[rows], BATCH),
        ),
        "images": (
            prefix,
            ImageBatches(images, fit, class_ids[fit], config.batch_size, 0),
            lambda rows: images_in_order(images, rows, class_ids[rows], BATCH),
        ),
    }
    right = {}
    for name, (first, batches, read) in sides.items():
        cut, own = split_network(backbone.network, layer), copy.deepcopy(output)
        model = nn.Sequential(first, cut.tail, own)
        loop.train(
            _PrefixFrozen(model),
            [*((stage, list(part.parameters())) for stage, part in cut.stages), ("output", list(own.parameters()))],
            batches,
            lambda read=read: read(validation),  # type: ignore[misc]
            config,
            keep_statistics=True,
        )
        with torch.inference_mode():
            right[name] = np.concatenate([(model(x).argmax(1) == y).numpy() for x, y in read(test)])
    draws = np.random.default_rng(0).integers(0, len(test), (10_000, len(test)))
    differences = (right["cached"].astype(float) - right["images"])[draws].mean(axis=1)
    return {
        "problem": "accuracy", "source": dataset.items[0].source, "from_layer": layer, "epochs": epochs,
        "tested": len(test), "cached": float(right["cached"].mean()), "images": float(right["images"].mean()),
        "difference": float(right["cached"].mean() - right["images"].mean()),
        "interval": [float(v) for v in np.quantile(differences, [0.025, 0.975])],
    }  # fmt: skip


class _PrefixFrozen(nn.Module):
    """Keeps the first part in eval mode whatever the rest does."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x)
        return found

    def train(self, mode: bool = True) -> _PrefixFrozen:
        super().train(mode)
        self.model[0].eval()
        return self


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=["speed", "accuracy"])
    parser.add_argument("store", type=Path)
    parser.add_argument("--from-layers", nargs="+", default=["blocks.5", "blocks.6"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    for layer in options.from_layers:
        if options.problem == "speed":
            made = speed(options.store, layer, options.rounds, options.items)
        else:
            made = accuracy(options.store, layer, options.epochs)
        recording.append("finetune", made | {"load": round(os.getloadavg()[0], 1)})


if __name__ == "__main__":
    main()
