"""What a run of `extract` serves: the spaces, layers and views asked for now and by earlier runs.

A plain rerun serves all that was asked for before. ``layers`` and ``views`` add to it, a ``backbone`` chooses one space
or adds it; nothing is dropped but by `gc`. A store of before says by its vectors what was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featcache.core.errors import FeatcacheError, UsageError
from featcache.core.names import GIVEN, VIEW_0, augmented
from featcache.core.recipe import Recipe, StandardTransform
from featcache.images.augmentation import AugmentedView, views_beside

if TYPE_CHECKING:
    from featcache.backbones import Extractor, Layer
    from featcache.store import FeatureStore, Space

DEFAULT_BACKBONE = "bundled:efficientnet_lite0"

Cells = dict[str, dict[int, int]]
"""By layer and seed how many versions of each image, the image itself among them; without a seed it alone."""


@dataclass
class Request:
    """What is asked for of one space.

    Attributes:
        network: computes its vectors.
        layers: in network order.
        cells: by layer and seed the number of views.
        dtype: storage dtype, None for the layers' own.
    """

    network: Extractor
    layers: list[Layer]
    cells: Cells
    dtype: str | None

    @property
    def views(self) -> list[AugmentedView]:
        """All views beside view 0 that any layer has."""
        most: dict[int, int] = {}
        for counts in self.cells.values():
            for seed, count in counts.items():
                most[seed] = max(count, most.get(seed, 1))
        return [view for seed in sorted(most) for view in views_beside(most[seed], seed)]

    @property
    def asked(self) -> set[tuple[str, str]]:
        """(layer, view) of all vectors."""
        return {(layer, VIEW_0) for layer in self.cells} | {
            (layer, view.name)
            for layer, counts in self.cells.items()
            for seed, count in counts.items()
            for view in views_beside(count, seed)
        }

    def to_dict(self) -> dict[str, Any]:
        """As the catalogue keeps it."""
        cells = {layer: {str(seed): count for seed, count in counts.items()} for layer, counts in self.cells.items()}
        return {"backbone": self.network.name, "layers": cells, "dtype": self.dtype}


@dataclass(frozen=True)
class Asked:
    """What this run was told; None is not given.

    Raises:
        UsageError: less than one view, or a seed below 0.
    """

    backbone: str | Extractor | None = None
    layers: Sequence[str] | None = None
    views: int | None = None
    seed: int | None = None
    dtype: str | None = None
    device: str | None = None
    runtime: str | None = None

    def __post_init__(self) -> None:
        if (self.views is not None and self.views < 1) or (self.seed or 0) < 0:
            raise UsageError(
                f"There is 1 view or more and a seed from 0 on, not {self.views or 1} views and the seed {self.seed}."
            )


def requests(
    asked: Asked, store: FeatureStore | None, source: str, notes: list[str], *, alone: bool = False
) -> list[Request]:
    """What to compute of a source, by space.

    Args:
        asked: what this run was told.
        store: the store as it is; None for a new one.
        source: the source's name.
        notes: gets what the user should know: which spaces are served, and which cannot be.
        alone: serve only what was asked for now.

    Raises:
        UsageError: no space can be served without more being told.
        UnknownNameError: no such backbone or layer.
    """
    from featcache import backbones
    from featcache.backbones.registry import check_weights

    before = {} if store is None or alone else remembered(store, source)
    if asked.backbone is not None or not before:
        given = asked.backbone or DEFAULT_BACKBONE
        network: Extractor = (
            backbones.get(given, device=asked.device, runtime=asked.runtime or "auto")
            if isinstance(given, str)
            else given
        )
        fingerprint = network.recipe.fingerprint
        if before and fingerprint not in before and network.recipe.detection is None:
            names = {_recipes(store)[known].backbone for known in before}
            notes.append(f"{network.name} is one more space, beside {', '.join(sorted(names))}.")
        return [_request(network, asked, before.get(fingerprint, {}))]
    found, problems = [], []
    recipes = _recipes(store)
    detections = {recipe.detection for recipe in recipes.values()}
    for fingerprint, kept in before.items():
        recipe = recipes[fingerprint]
        if fingerprint in detections or recipe.detection is not None:
            problems.append(
                f"{_called(fingerprint, recipe)} holds faces: `featcache faces extract` brings it up to date"
            )
            continue
        try:
            network = backbones.for_recipe(recipe, asked.device)
            check_weights(recipe, network)
            if asked.runtime is not None and recipe.runtime is None:
                network = network.with_runtime(runtime=asked.runtime, precision=recipe.precision)
            if network.recipe.fingerprint != fingerprint:
                raise UsageError(
                    f"the network differs now in {', '.join(name for name, _, _ in recipe.differences(network.recipe))}"
                )
            found.append(_request(network, asked, kept))
        except FeatcacheError as error:
            if not recipe.backbone.startswith("module:") and len(before) == 1:
                raise
            reason = (
                "its network was given in Python: fc.extract(…, backbone=…) brings it up to date"
                if recipe.backbone.startswith("module:")
                else str(error)
            )
            problems.append(f"{_called(fingerprint, recipe)} is passed over: {reason}")
    if not found:
        raise UsageError(f"{'; '.join(problems)}. For vectors of another network, give its name with --backbone.")
    if problems or len(found) > 1:
        notes += [f"The space {problem}." for problem in problems]
        if len(found) > 1:
            served = ", ".join(_called(one.network.recipe.fingerprint, one.network.recipe) for one in found)
            notes.append(f"{len(found)} spaces are brought up to date: {served}.")
    return found


def remembered(store: FeatureStore, source: str) -> dict[str, dict[str, Any]]:
    """What was asked for of a source, by fingerprint; of a new source, what the others have."""
    known = source in store.sources()
    found = store.requests(source) if known else {}
    found = {fingerprint: wanted for fingerprint, wanted in found.items() if wanted.get("layers")}
    for space in store.spaces:
        if space.fingerprint not in found and space.layers:
            stored = store.columns_of(source, space.fingerprint) if known else _columns(space)
            if stored:
                found[space.fingerprint] = {"layers": _cells(stored), "dtype": None}
    if not known and source in GIVEN:
        return {}
    return found


def _columns(space: Space) -> list[tuple[str, str]]:
    return [(layer, view) for layer, column in space.layers.items() for view in column.views]


def _cells(columns: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Stored columns as what was asked for: view k of a seed stands for k + 1 views."""
    digest = views_beside(2, 0)[0].name.split("-")[0]
    cells: dict[str, dict[str, int]] = {}
    for layer, view in columns:
        counts = cells.setdefault(layer, {})
        made = augmented(view)
        if made is not None and made[0] == digest:
            counts[str(made[1])] = max(made[2] + 1, counts.get(str(made[1]), 1))
    return cells


def _request(network: Extractor, asked: Asked, kept: Mapping[str, Any]) -> Request:
    cells: Cells = {
        layer: {int(seed): count for seed, count in counts.items()} for layer, counts in kept.get("layers", {}).items()
    }
    named = [layer.name for layer in network.resolve_layers(asked.layers)] if asked.layers is not None else []
    seeds = set.intersection(*(set(counts) for counts in cells.values())) if cells else set()
    common = {seed: min(counts[seed] for counts in cells.values()) for seed in seeds}  # the views that all have
    for name in named or ([] if cells else ["pooled"]):
        cells.setdefault(name, dict(common))
    if asked.views is not None and asked.views > 1:
        seed = asked.seed or 0
        # Whole activation maps are large, so they get more views only where they are named.
        for name in named or [name for name in cells if not name.endswith(":none")] or list(cells):
            cells[name][seed] = max(asked.views, cells[name].get(seed, 1))
    if any(cells.values()):
        _check_augmentable(network.recipe)
    return Request(network, network.resolve_layers(list(cells)), cells, asked.dtype or kept.get("dtype"))


def _check_augmentable(recipe: Recipe) -> None:
    """Refuse views where the transform is a callable or images are aligned first."""
    if recipe.detection is not None:
        raise UsageError(f"{recipe.backbone} reads aligned images, which have no views. Omit --views.")
    if not isinstance(recipe.pixels.transform, StandardTransform):
        raise UsageError(
            f"The transform of {recipe.backbone} is a callable, which cannot be applied to a view. Give a "
            "StandardTransform, or omit --views."
        )


def _recipes(store: FeatureStore | None) -> dict[str, Recipe]:
    return {} if store is None else {space.fingerprint: space.recipe for space in store.spaces}


def _called(fingerprint: str, recipe: Recipe) -> str:
    return f"{fingerprint[:12]} ({recipe.backbone})"
