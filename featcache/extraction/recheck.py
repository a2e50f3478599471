"""`check_live`: recompute random vectors of a store from their images, and compare.

The store's checksums (`verify`) prove that vectors are those that were written. This shows that they are right: each
image is read again and run through the published transform and eager torch at float32, whatever decoder, runtime and
precision made the stored vector.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from featcache.backbones import Backbone, for_recipe
from featcache.core.arguments import checked, described
from featcache.core.errors import MissingVectorsError, RecipeMismatchError, UnusableImageError, UsageError
from featcache.core.html import HtmlTable
from featcache.core.names import VIEW_0
from featcache.core.progress import Progress, choose
from featcache.extraction.embed import backbone_for
from featcache.extraction.stored_source import known_images
from featcache.images.entry import Entry, pixels_sha256
from featcache.images.transforms import published
from featcache.store import FeatureStore, Item

if TYPE_CHECKING:
    from featcache.backbones import Extractor
    from featcache.core.recipe import Recipe
    from featcache.images.datasets import Dataset
    from featcache.images.sources import Source
    from featcache.store.spaces import Space

COSINE = 0.9999
"""Lowest cosine of a float32 vector with the reference; for bfloat16 see `featcache.backbones.bfloat16_floor`."""
RELATIVE_ERROR = {"float32": 0.1, "bfloat16": 0.2}
"""Largest ‖a - b‖/‖b‖: far above what decoders and runtimes differ by, it finds vectors of the right direction and
wrong length, which the cosine does not."""

_BATCH = 16
_WORST = 5


@dataclass(frozen=True, slots=True)
class Compared:
    """One stored vector a against the reference's b.

    Attributes:
        uri: of the image.
        layer: of the vector, which is flattened.
        cosine: a·b/(‖a‖‖b‖); 1 if both are zero, 0 if one is or a value is not finite.
        relative_error: ‖a - b‖/‖b‖; infinite if b alone is zero or a value is not finite.
    """

    uri: str
    layer: str
    cosine: float
    relative_error: float


@dataclass
class CheckLiveReport(HtmlTable):
    """What `check_live` found. Figures are over all compared vectors, one per image and layer; None without any.

    Attributes:
        store, source, space, backbone: that were checked; the space by its fingerprint.
        precision: of the stored vectors, ``float32`` or ``bfloat16``.
        layers: names of the layers, in network order.
        reference: what they were compared with, in words.
        drawn: images drawn.
        compared: images compared; ``compared + gone + changed + unusable == drawn``.
        gone: images whose source or file is missing or unreadable.
        changed: images whose bytes are not those of the stored vector.
        unusable: images that the reference cannot decode or transform.
        cosine_least, cosine_mean, relative_error_largest: see `Compared`.
        cosine_floor, relative_error_limit: the tolerance.
        failed: images with a vector beyond the tolerance.
        worst: a few vectors, those beyond the tolerance first, then by increasing cosine.
        flips: compared images whose predictions differ between the stored vectors and the reference's; None without a
            head.
        notes: what a person should know besides.
        seconds: from the call to the return.
    """

    store: str
    source: str
    space: str
    backbone: str
    precision: str
    layers: list[str]
    reference: str
    drawn: int
    cosine_floor: float
    relative_error_limit: float
    compared: int = 0
    gone: int = 0
    changed: int = 0
    unusable: int = 0
    cosine_least: float | None = None
    cosine_mean: float | None = None
    relative_error_largest: float | None = None
    failed: int = 0
    worst: list[Compared] = field(default_factory=list)
    flips: int | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether images were compared and all are within the tolerance."""
        return self.compared > 0 and self.failed == 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, with ``ok``."""
        return {"ok": self.ok, **asdict(self)}


class _Layer(Protocol):
    @property
    def name(self) -> str: ...


class Head(Protocol):
    """What `check_live` asks of a head; a `featcache.Bundle` is one."""

    @property
    def layers(self) -> Sequence[_Layer]:
        """The layers it reads, one vector after another."""

    @property
    def classifier(self) -> object:
        """What names labels.

        Raises:
            UsageError: the head names none.
        """

    def require(self, recipe: Recipe) -> None:
        """Check that it was fitted on vectors of *recipe*.

        Raises:
            RecipeMismatchError: it was not.
        """

    def predict_vectors(self, X: np.ndarray) -> np.ndarray:
        """The (n,) labels, or (n, k) bool, of (n, d) vectors as stored."""


@checked
def check_live(
    store: str | Path | FeatureStore,
    n: int = 200,
    *,
    source: str | None = None,
    space: str | None = None,
    head: Head | None = None,
    seed: int = 0,
    images: str | Path | Source | Dataset | Mapping[str, Dataset] | None = None,
    backbone: Extractor | None = None,
    weights: str | Path | None = None,
    progress: Progress | bool | None = None,
) -> CheckLiveReport:
    """Recompute random vectors of a store, all stored layers of view 0, and compare them with the stored ones.

    Images that are gone or changed are counted, not compared, and not replaced by others. The reference is
    the extractor's own (`featcache.backbones.Extractor.reference`), the tolerance `COSINE` and `RELATIVE_ERROR`.

    Args:
        store: a store or its path.
        n: how many images, duplicates once; all if there are fewer.
        source, space: may be omitted if the store holds one.
        head: a `Bundle` whose changed predictions are counted.
        seed: of the draw.
        images: where the source's images are now, as for `featcache.extract`; by default the root that the store
            knows. Needed for datasets, and for a manifest with images that its folder does not list.
        backbone: needed only where the vectors were made by a module given in Python, or are those of aligned faces
            (`featcache.faces.aligned_backbone`).
        weights: the file of weights that made the vectors; by default the last one used for them on this machine, or
            the published weights.
        progress: as for `featcache.extract`.

    Raises:
        MissingVectorsError: the source has no vectors in the space.
        RecipeMismatchError: the backbone does not follow the space's recipe, or the head needs another one.
        UsageError: *n* is not positive, the head compares two images, the images can be given by a Python program
            alone and were not, or there are both a backbone and weights.
        UnknownNameError: no such source or space, or the head's layers are not stored.

    Example:
        >>> report = fc.check_live("pets.fcache")
        >>> report.compared, report.failed
        (24, 0)
    """
    began = time.monotonic()
    if n < 1 or seed < 0:
        raise UsageError(f"Check 1 image or more with a seed from 0 on, not {n} with the seed {seed}.")
    opened = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
    chosen, name = opened.space(space), opened.source(source)
    if head is not None:
        if not hasattr(head, "classifier"):
            raise UsageError(f"head is a Bundle, not {described(head)}. featcache.load(PATH) gives one.")
        _ = head.classifier  # raises before a backbone is loaded
        head.require(chosen.recipe)
        opened.layer_names([use.name for use in head.layers], chosen.fingerprint)
    layers = [layer for layer, column in chosen.layers.items() if VIEW_0 in column.views]
    drawn = _draw(opened, chosen, layers, opened.items(source=name), n, seed)
    if not drawn:
        raise MissingVectorsError(
            f"No image of the source {name!r} has a vector in the space {chosen.fingerprint[:12]} of {opened.path}. "
            "Run `featcache extract` first, or choose another --space."
        )
    reference = _reference(chosen.recipe, backbone, weights)
    report = CheckLiveReport(
        str(opened.path), name, chosen.fingerprint, chosen.recipe.backbone, chosen.recipe.precision, layers,
        _words(reference), len(drawn), *_tolerance(chosen), flips=None if head is None else 0,
    )  # fmt: skip
    checking = _Checking(opened, chosen, reference, report, head)
    with choose(progress) as bar:
        bar.start("check", len(drawn), "images")
        entries = known_images(opened, name, drawn, report.notes, images)
        for start in range(0, len(drawn), _BATCH):
            batch = drawn[start : start + _BATCH]
            checking.batch(batch, entries)
            bar.advance(len(batch))
    checking.finish()
    report.seconds = time.monotonic() - began
    return report


class _Checking:
    """Compares batches of images, and collects what was found."""

    def __init__(
        self, store: FeatureStore, space: Space, reference: Extractor, report: CheckLiveReport, head: Head | None
    ) -> None:
        self.store, self.space, self.reference, self.report, self.head = store, space, reference, report, head
        self.layers = reference.resolve_layers(report.layers)
        self.found: list[Compared] = []

    def batch(self, items: Sequence[Item], entries: Mapping[str, Entry]) -> None:
        """Compare the images of these items that exist and are unchanged."""
        read, pixels = [], []
        for item in items:
            made = self._pixels(item, entries.get(item.uri))
            if made is not None:
                read.append(item)
                pixels.append(made)
        if not read:
            return
        computed = self.reference.forward(np.stack(pixels), self.layers)
        stored: dict[str, dict[bytes, np.ndarray]] = {}
        for layer in self.report.layers:
            sha256s = list(dict.fromkeys(item.sha256 for item in read))
            has = self.store.has(sha256s, layer, space=self.space.fingerprint)
            there = [sha256s[i] for i in np.flatnonzero(has)]
            (rows,) = self.store.gather(there, [layer], self.space.fingerprint)
            stored[layer] = dict(zip(there, rows.reshape(len(there), -1), strict=True))
        for row, item in enumerate(read):
            for layer in self.report.layers:
                if item.sha256 in stored[layer]:
                    pair = stored[layer][item.sha256], computed[layer][row].reshape(-1)
                    self.found.append(Compared(item.uri, layer, *_compared(*pair)))
        self.report.compared += len(read)
        if self.head is not None:
            self._count_flips(self.head, read, stored, computed)

    def _pixels(self, item: Item, entry: Entry | None) -> np.ndarray | None:
        """The reference's input for one image; None, and counted, if there is none."""
        if entry is None:
            self.report.gone += 1
            return None
        try:
            if entry.make_image is not None:
                made = entry.make_image()
                sha256, data = pixels_sha256(made), b""
            else:
                data, _ = entry.read()
                sha256 = hashlib.sha256(data).digest()
        except UnusableImageError:
            self.report.gone += 1
            return None
        if sha256 != item.sha256:
            self.report.changed += 1
            return None
        try:
            image = made if entry.make_image is not None else self.reference.decode(data)
            return self.reference.prepare(image, sha256)
        except UnusableImageError as error:
            self.report.unusable += 1
            self.report.notes.append(f"The reference cannot use {item.uri}: {error}.")
            return None

    def _count_flips(
        self,
        head: Head,
        items: Sequence[Item],
        stored: Mapping[str, Mapping[bytes, np.ndarray]],
        computed: Mapping[str, np.ndarray],
    ) -> None:
        names = [use.name for use in head.layers]
        rows = [row for row, item in enumerate(items) if all(item.sha256 in stored[name] for name in names)]
        if not rows:
            return
        mine = [np.concatenate([stored[name][items[row].sha256] for name in names]) for row in rows]
        theirs = [np.concatenate([computed[name][row].reshape(-1) for name in names]) for row in rows]
        differ = head.predict_vectors(np.stack(mine)) != head.predict_vectors(np.stack(theirs))
        self.report.flips = int(differ.reshape(len(rows), -1).any(axis=1).sum()) + (self.report.flips or 0)

    def finish(self) -> None:
        """Fill in the figures of the report."""
        report, found = self.report, self.found
        if found:
            cosines = np.array([one.cosine for one in found])
            report.cosine_least, report.cosine_mean = float(cosines.min()), float(cosines.mean())
            report.relative_error_largest = max(one.relative_error for one in found)
        report.failed = len({one.uri for one in found if self._beyond(one)})
        # A vector of the right direction and wrong length comes before right ones.
        report.worst = sorted(found, key=lambda one: (not self._beyond(one), one.cosine, -one.relative_error))[:_WORST]

    def _beyond(self, one: Compared) -> bool:
        """Whether a vector is beyond the tolerance."""
        return one.cosine < self.report.cosine_floor or one.relative_error > self.report.relative_error_limit


def _compared(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Cosine and relative error of two vectors (d,), in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0, float("inf")
    lengths, away = (float(np.linalg.norm(a)), float(np.linalg.norm(b))), float(np.linalg.norm(a - b))
    if min(lengths) == 0:
        return (1.0, 0.0) if max(lengths) == 0 else (0.0, float("inf") if lengths[1] == 0 else 1.0)
    return float(a @ b) / lengths[0] / lengths[1], away / lengths[1]


def _draw(
    store: FeatureStore, space: Space, layers: Sequence[str], items: Sequence[Item], n: int, seed: int
) -> list[Item]:
    """*n* random items that have a vector of any of the layers, each content once, in the order of *items*."""
    distinct = list({item.sha256: item for item in items}.values())
    order = np.random.default_rng(seed).permutation(len(distinct))
    drawn: list[int] = []
    for start in range(0, len(order), 1000):
        some = [int(at) for at in order[start : start + 1000]]
        sha256s = [distinct[at].sha256 for at in some]
        has = np.any([store.has(sha256s, layer, space=space.fingerprint) for layer in layers], axis=0)
        drawn += [some[i] for i in np.flatnonzero(has)]
        if len(drawn) >= n:
            break
    return [distinct[at] for at in sorted(drawn[:n])]


def _reference(recipe: Recipe, backbone: Extractor | None, weights: str | Path | None) -> Extractor:
    """What the vectors of a recipe are compared with.

    Raises:
        RecipeMismatchError: the extractor does not follow the recipe at float32; the message names the fields.
        UsageError: there is no such file of weights, or there are both a backbone and weights.
    """
    if backbone is not None and weights is not None:
        raise UsageError("A backbone brings its weights. Give one of the two, backbone or weights.")
    exact = replace(recipe, precision="float32", runtime=None)
    if backbone is not None and not isinstance(backbone, Backbone):
        reference = backbone.reference()
        differing = exact.differences(reference.recipe)
        if differing:
            listed = "; ".join(f"{name} is {theirs!r}, needed is {mine!r}" for name, mine, theirs in differing)
            raise RecipeMismatchError(f"The vectors of {recipe.backbone} cannot be recomputed here: {listed}.")
        return reference
    if weights is not None and not recipe.backbone.startswith("module:"):
        backbone = for_recipe(exact, weights=weights)
    return backbone_for(exact, backbone and backbone.with_runtime(runtime="torch", precision="float32")).reference()


def _tolerance(space: Space) -> tuple[float, float]:
    from featcache.backbones import bfloat16_floor

    precision = space.recipe.precision
    floor = COSINE if precision == "float32" else bfloat16_floor(space.recipe.backbone)
    return floor, RELATIVE_ERROR[precision]


def _words(reference: Extractor) -> str:
    pixels = reference.recipe.pixels
    how = "the published transform" if pixels == published(pixels) and pixels.chip is None else "its recipe's pixels"
    return f"{how}, eager torch, float32"
