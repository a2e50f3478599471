"""Bundles: a head with everything needed to use it again, in one ``.fch`` file.

The format is described in docs/format.md. A file holds no code; a file whose parts do not fit together is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.arguments import check, checked
from featcache.core.errors import BundleError, RecipeMismatchError, UsageError
from featcache.core.html import html_table
from featcache.core.outputs import HEAD, check_output
from featcache.core.progress import Progress, choose
from featcache.heads.matching import MatchingPredictor
from featcache.heads.serialize import Classifier, Predictor, export_predictor
from featcache.training import bundle_file
from featcache.training.layer_use import LayerUse, scale_layers
from featcache.training.partial_model import PartialModel

if TYPE_CHECKING:
    from torch import nn

    from featcache.backbones import Backbone
    from featcache.core.recipe import Recipe
    from featcache.extraction.embed import Embedded, ImageLike
    from featcache.images.entry import Entry
    from featcache.store import FeatureStore

_BATCH = 16
_TASKS = {"sigmoid": "multilabel", "match": "match"}


@dataclass(frozen=True, slots=True)
class Prediction:
    """A head's prediction for one image.

    Attributes:
        uri: the path as given, of an image in a folder that of the folder with its place below; ``NAME.tar/MEMBER`` in
            a tar file; or the image's place in the list.
        labels: (label, probability) pairs, the most probable first; probability None for a head without them.
        problem: why the image could not be used; then there are no labels.
    """

    uri: str
    labels: list[tuple[str, float | None]]
    problem: str | None = None


@dataclass
class Bundle:
    """A fitted head, its classes, and the recipe and layers that it needs.

    There are three kinds: a head on the vectors of a frozen backbone; a `PartialModel`, the trained last part of a
    network, on the activations at its split point; and a head on the vectors of a network that was trained with it,
    whose weights are in the bundle.

    Attributes:
        head: its name.
        classes: k labels.
        layers: the layers it reads, in network order.
        recipe: of the vectors it was fitted on; None if not known, and then it predicts from vectors only.
        predictor: the head as arrays; None for an estimator without such a form, which cannot be saved.
        estimator: the fitted estimator, if `predictor` is None.
        weights: the state of the network by name, if it was trained with the head.
        trained_on: (m, 32) uint8, the sorted SHA-256s of the images it was fitted on, each once; none if the vectors
            came from a file without them.
        fitted_on: number of images it was fitted on.
        chosen: hyper-parameters that were chosen.
        report: scores and protocol, as `train` made them.
        created: UTC, ISO 8601.
    """

    head: str
    classes: tuple[str, ...]
    layers: tuple[LayerUse, ...]
    recipe: Recipe | None
    predictor: Predictor | PartialModel | None
    trained_on: np.ndarray
    fitted_on: int = 0
    chosen: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    estimator: Any = None
    weights: Mapping[str, np.ndarray] | None = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __repr__(self) -> str:
        origin = "unknown vectors" if self.recipe is None else self.recipe.backbone
        layers = "+".join(use.name for use in self.layers)
        return f"Bundle({self.head}, {len(self.classes)} classes, {layers} of {origin})"

    def _repr_html_(self) -> str:
        shown = ("n", "score", "chosen", "fit_seconds")
        return html_table(repr(self), {name: self.report[name] for name in shown if name in self.report})

    @property
    def task(self) -> str:
        """``match`` (compares two images), ``multilabel`` (a probability for each label), else ``classify``."""
        return _TASKS.get("" if self.predictor is None else self.predictor.link, "classify")

    @property
    def classifier(self) -> Classifier | PartialModel | None:
        """The predictor of a head that predicts labels; None if it has none.

        Raises:
            UsageError: the head compares two images.
        """
        if isinstance(self.predictor, MatchingPredictor):
            raise UsageError(
                "This head compares two images and predicts no labels. Use it with `featcache faces verify`, or "
                "`bundle.matching` in Python. `featcache train` makes a head that predicts labels."
            )
        return self.predictor

    @property
    def matching(self) -> MatchingPredictor:
        """The predictor of a head that compares two images; it takes vectors from `scaled`.

        Raises:
            UsageError: the head predicts labels.
        """
        if not isinstance(self.predictor, MatchingPredictor):
            raise UsageError(
                f"The head {self.head} predicts labels and cannot compare two images. `featcache faces train` makes "
                "one that can."
            )
        return self.predictor

    @property
    def width(self) -> int:
        """Size d of the vectors it reads, all layers together."""
        return sum(layer.width for layer in self.layers)

    @checked
    def scaled(self, X: np.ndarray) -> np.ndarray:
        """Vectors as the head reads them: each layer divided by its scale.

        Args:
            X: (n, d) vectors as stored, the layers concatenated.

        Raises:
            RecipeMismatchError: d is not the size of the layers together.
            UsageError: a value is not finite; the message names the row.
        """
        if X.dtype.kind not in "biuf":
            raise UsageError(f"X has dtype {X.dtype}. Vectors are numbers, as in `store.arrays()[0]`.")
        X = np.asarray(X, dtype=np.float32)
        if X.ndim != 2 or X.shape[1] != self.width:
            named = " + ".join(f"{layer.name} ({layer.width})" for layer in self.layers)
            raise RecipeMismatchError(f"The head reads vectors (n, {self.width}) of {named}, not {X.shape}.")
        bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
        if len(bad):
            raise UsageError(f"Row {bad[0]} of the vectors holds a value that is not finite.")
        return scale_layers(X, self.layers)

    @checked
    def predict_proba_vectors(self, X: np.ndarray) -> np.ndarray | None:
        """Probabilities from vectors.

        Args:
            X: (n, d) vectors as stored.

        Returns:
            (n, k) float64, rows sum to 1 except for the task ``multilabel``; None for a head without probabilities.
        """
        predictor, Z = self.classifier, self.scaled(X)
        if predictor is not None:
            return predictor.probabilities(Z)
        return np.asarray(self.estimator.predict_proba(Z)) if hasattr(self.estimator, "predict_proba") else None

    @checked
    def predict_vectors(self, X: np.ndarray) -> np.ndarray:
        """The (n,) labels from (n, d) vectors as stored; for the task ``multilabel`` (n, k) bool."""
        predictor, Z = self.classifier, self.scaled(X)
        return predictor.predict(Z) if predictor is not None else np.asarray(self.estimator.predict(Z)).astype(str)

    @checked
    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        top: int | None = None,
        backbone: Backbone | None = None,
        store: str | Path | FeatureStore | None = None,
        progress: Progress | bool | None = None,
    ) -> list[Prediction]:
        """Predict the labels of images.

        Args:
            images: one or several of: paths of files or folders, tar files or patterns of them, PIL images, arrays; or
                a store, for the images that it lists.
            top: how many labels per image; by default 5, and for the task ``multilabel`` all with a probability above
                0.5.
            backbone: needed only for vectors of a module in Python.
            store: a store that may hold the vectors of some of the images: these are not computed again.
            progress: as for `featcache.extract`.

        Returns:
            One `Prediction` per image, in order; an image that is gone or cannot be used has a ``problem``.

        Raises:
            SourceError: a folder, tar file or pattern was given, and it stands for no image.
            MissingVectorsError: the store holds no vectors of the head's recipe and layers.
            RecipeMismatchError: the backbone does not have the recipe of the vectors.
            UsageError: the head compares two images.

        Example:
            >>> prediction = fc.load("pets.fch").predict("photos/cats/cat-00.jpg")[0]
            >>> prediction.labels[0][0]
            'cats'
        """
        from featcache.extraction.embed import listed
        from featcache.extraction.known_vectors import store_among

        _ = self.classifier  # raises before anything is listed
        found = listed(images)
        if store is None and self.recipe is not None:
            store = store_among(images, self.recipe, [layer.name for layer in self.layers])
        predictions: list[Prediction] = []
        with choose(progress) as bar:
            bar.start("predict", len(found), "images")
            for batch in self.predictions(found, top=top, backbone=backbone, store=store):
                predictions += batch
                bar.advance(len(batch))
        return predictions

    @checked
    def predictions(
        self,
        images: Sequence[ImageLike | Entry],
        *,
        top: int | None = None,
        backbone: Backbone | None = None,
        store: str | Path | FeatureStore | None = None,
    ) -> Iterator[list[Prediction]]:
        """Predict batch by batch, for more images than predictions fit in memory.

        Args:
            images: n paths of files, PIL images or arrays, or what `listed` in `featcache.extraction.embed` gives.
            top, backbone, store: as for `predict`.

        Yields:
            The predictions of the next images, n in all.

        Raises:
            As `predict`.

        Example:
            >>> batches = fc.load("pets.fch").predictions(["photos/cats/cat-00.jpg", "photos/dogs/dog-00.jpg"])
            >>> [prediction.labels[0][0] for batch in batches for prediction in batch]
            ['cats', 'dogs']
        """
        from featcache.extraction.embed import embed
        from featcache.extraction.known_vectors import KnownVectors
        from featcache.store import FeatureStore

        if top is not None and top < 1:
            raise UsageError(f"top is a number of labels from 1 on, not {top}.")
        _ = self.classifier  # raises before a backbone is loaded
        if self.recipe is None:
            raise RecipeMismatchError(
                "This head was trained on vectors of unknown origin, so it cannot predict from "
                "images. Use predict_vectors with vectors of the same kind."
            )
        layers = [layer.name for layer in self.layers]
        known = None if store is None else KnownVectors(FeatureStore.open(store), self.recipe, layers)
        head = self if backbone is None else self.on(backbone)
        network = head.backbone(None if isinstance(head.predictor, PartialModel) else backbone)
        embedded = embed(images, network, layers, known=known)
        while batch := list(islice(embedded, _BATCH)):
            yield head._predictions(batch, top)

    @checked
    def backbone(self, given: Backbone | None = None) -> Backbone:
        """The network whose vectors or activations the head reads.

        Args:
            given: needed only if it is a module in Python.

        Raises:
            RecipeMismatchError: it has another recipe, or the head was trained on vectors of unknown origin.
        """
        if self.recipe is None:
            raise RecipeMismatchError("This head was trained on vectors of unknown origin, so it has no backbone.")
        from featcache.backbones.registry import with_weights
        from featcache.extraction.embed import backbone_for

        if given is None and isinstance(self.predictor, PartialModel):
            return self.predictor.frozen  # one network in memory, for the layers on both sides of the split point
        if self.weights is None:
            return backbone_for(self.recipe, given)
        if given is None:
            return self._own_network
        return backbone_for(self.recipe, with_weights(given, self.weights, self.recipe.pixels))

    @cached_property
    def _own_network(self) -> Backbone:
        assert self.recipe is not None
        assert self.weights is not None
        from featcache.backbones import get
        from featcache.backbones.registry import with_weights
        from featcache.extraction.embed import backbone_for

        made = get(self.recipe.backbone, runtime=self.recipe.runtime or "auto", precision=self.recipe.precision)
        return backbone_for(self.recipe, with_weights(made, self.weights, self.recipe.pixels))

    @checked
    def on(self, backbone: Backbone) -> Bundle:
        """The same bundle; a `PartialModel` then uses this backbone instead of looking for it by name."""
        return (
            replace(self, predictor=replace(self.predictor, backbone=backbone))
            if isinstance(self.predictor, PartialModel)
            else self
        )

    @checked
    def require(self, recipe: Recipe) -> None:
        """Check that the head was fitted on vectors of *recipe*.

        Raises:
            RecipeMismatchError: it was not; the message names every field that differs.
        """
        if self.recipe is None:
            return
        differing = self.recipe.differences(recipe)
        if differing:
            named = "; ".join(f"{name}: {mine!r} in the head, {theirs!r} here" for name, mine, theirs in differing)
            raise RecipeMismatchError(f"The head needs vectors of another recipe. {named}.")

    @checked
    def overlap(self, sha256s: Iterable[bytes]) -> int:
        """How many of these images the head was fitted on."""
        return sum(sha256 in self._contents for sha256 in sha256s)

    @cached_property
    def _contents(self) -> frozenset[bytes]:
        return frozenset(row.tobytes() for row in self.trained_on)

    @checked
    def to_torch(self, backbone: Backbone | None = None) -> nn.Module:
        """Backbone and head as one torch module, from the network's input to logits (n, k).

        Its method ``transform`` makes the input (3, h, w) float32 from a PIL image; ``classes`` has the labels. The
        backbone part is the frozen network itself, not a copy.

        Raises:
            BundleError: the head cannot be converted.
            RecipeMismatchError: the backbone has another recipe than the vectors.
            UsageError: the head compares two images.
        """
        predictor = self.classifier
        if predictor is None:
            raise BundleError(f"The head {self.head} has no linear form, so it cannot be converted to torch.")
        if self.recipe is None:
            raise RecipeMismatchError("This head was trained on vectors of unknown origin, so it has no backbone.")
        from featcache.training.to_torch import EndToEnd

        if backbone is not None and isinstance(predictor, PartialModel):
            return self.on(backbone).to_torch()
        return EndToEnd(self.backbone(backbone), predictor, [(use.name, use.scale) for use in self.layers])

    @checked
    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the bundle.

        Args:
            path: the file; a head that is there is replaced.
            force: replace any other file too.

        Raises:
            BundleError: the head cannot be saved; the message names what is supported.
            UsageError: there is something else at *path*, or its folder is not writable.
        """
        if self.predictor is None:
            export_predictor(self.estimator)
            raise BundleError(f"The head {self.head} cannot be saved.")
        target = Path(path)
        check_output(target, HEAD, force=force)
        bundle_file.write(target, {one.name: getattr(self, one.name) for one in fields(self)})

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read a bundle back.

        Raises:
            UsageError: there is no file at *path*.
            BundleError: it is not a bundle, or its parts do not fit together.
            StoreFormatError: it was written by a newer featcache.

        Example:
            >>> bundle = fc.load("pets.fch")
            >>> [prediction] = bundle.predict(["photos/cats/cat-00.jpg"])
            >>> prediction.labels[0][0]
            'cats'
        """
        check("path", path, "str | Path")  # not `checked`: mypy must know the type of `featcache.load`
        return cls(**bundle_file.read(Path(path)))

    def _predictions(self, batch: Sequence[Embedded], top: int | None) -> list[Prediction]:
        vectors = [embedded.vector for embedded in batch if embedded.vector is not None]
        labels = iter(self._labels(np.stack(vectors), top) if vectors else ())
        return [
            Prediction(e.name, [], e.reason) if e.vector is None else Prediction(e.name, next(labels)) for e in batch
        ]

    def _labels(self, X: np.ndarray, top: int | None) -> list[list[tuple[str, float | None]]]:
        """For each of the vectors (n, d) its (label, probability) pairs."""
        probabilities = self.predict_proba_vectors(X)
        if probabilities is None:
            return [[(str(label), None)] for label in self.predict_vectors(X)]
        found: list[list[tuple[str, float | None]]] = []
        for p in probabilities:
            order = np.argsort(-p, kind="stable")
            if top is None and self.task == "multilabel":
                order = order[p[order] > 0.5]
            else:
                order = order[: 5 if top is None else top]
            found.append([(self.classes[i], float(p[i])) for i in order])
        return found
