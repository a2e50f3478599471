"""What a run of `extract` serves: the spaces, layers and views asked for now and by earlier runs.

A plain rerun serves all that was asked for before. ``layers`` and ``views`` add to it, a ``backbone`` chooses one space
or adds it; nothing is dropped but by `gc`. A new source is served as the others are. A source of a store of before says
by its vectors what was asked for, once: the catalogue keeps it from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featcache.backbones.input_size import AS_PUBLISHED, InputSize
from featcache.core.errors import FeatcacheError, UsageError
from featcache.core.names import GIVEN, VIEW_0, augmented
from featcache.core.recipe import Recipe, StandardTransform
from featcache.images.augmentation import AugmentedView, views_beside

if TYPE_CHECKING:
    from featcache.backbones import Extractor, Layer
    from featcache.store import FeatureStore
    from featcache.store.sources import SourceRecords
    from featcache.store.writer import StoreWriter

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
    size: InputSize = AS_PUBLISHED

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
    if not alone:
        _check_seed(asked, before)
    recipes = _recipes(store)
    if asked.backbone is not None or asked.size.is_given or not before:
        given = asked.backbone or _network_of([recipes[known] for known in before], asked) or DEFAULT_BACKBONE
        network: Extractor = (
            backbones.get(given, device=asked.device, runtime=asked.runtime or "auto")
            if isinstance(given, str)
            else given
        )
        network = at_size(network, asked.size)
        fingerprint = network.recipe.fingerprint
        if before and fingerprint not in before and network.recipe.detection is None:
            others = sorted({_in_words(recipes[known], network.recipe) for known in before})
            mine = _in_words(network.recipe, *[recipes[known] for known in before])
            notes.append(f"{mine} is one more space, beside {', '.join(others)}.")
        return [_request(network, asked, before.get(fingerprint, {}))]
    found, problems = [], []
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
            known = {one.network.recipe.fingerprint for one in found}
            served = ", ".join(_called(key, recipes[key], *recipes.values()) for key in before if key in known)
            notes.append(f"{len(found)} spaces are brought up to date: {served}.")
    return found


def at_size(network: Extractor, size: InputSize) -> Extractor:
    """The network at the input size that was asked for.

    Raises:
        UsageError: it has none.
    """
    from featcache.backbones import Backbone

    if not size.is_given:
        return network
    if not isinstance(network, Backbone):
        raise UsageError(f"{network.name} has no input size. Omit input_size and fit.")
    return network.with_input(size.input_size, size.fit)


def _network_of(recipes: Sequence[Recipe], asked: Asked) -> Extractor | None:
    """The network of these spaces, for another size of its input; None without spaces.

    Raises:
        UsageError: there are several.
    """
    from featcache import backbones

    whole = [recipe for recipe in recipes if recipe.detection is None and recipe.pixels.chip is None]
    networks = {(recipe.backbone, recipe.weights, recipe.precision): recipe for recipe in whole}
    if len(networks) > 1:
        names = ", ".join(sorted({recipe.backbone for recipe in networks.values()}))
        raise UsageError(f"The store has vectors of several networks ({names}). Name one with --backbone.")
    for recipe in networks.values():
        network = backbones.for_recipe(recipe, asked.device)
        return network.with_runtime(runtime=asked.runtime or network.runtime, precision=network.precision)
    return None


def _in_words(recipe: Recipe, *others: Recipe) -> str:
    """The backbone's name, with the size of its input where one of the others is of the same backbone."""
    transform = recipe.pixels.transform
    if isinstance(transform, StandardTransform) and any(recipe.backbone == other.backbone for other in others):
        return f"{recipe.backbone} ({transform.size_words})"
    return recipe.backbone


def remembered(store: FeatureStore, source: str) -> dict[str, dict[str, Any]]:
    """What was asked for of a source, by fingerprint; of a new source, what was asked for of the others."""
    if source in store.sources():
        return asked_before(store, source)
    if source in GIVEN:
        return {}
    found: dict[str, dict[str, Any]] = {}
    others = [asked_before(store, other, whole_maps=False) for other in store.sources() if other not in GIVEN]
    if not any(others):
        others = [
            {
                space.fingerprint: _stored([(name, v) for name, one in space.layers.items() for v in one.views], False)
                for space in store.spaces
                if space.layers
            }
        ]
    for other in others:
        for fingerprint, wanted in other.items():
            cells = found.setdefault(fingerprint, {"layers": {}, "dtype": wanted.get("dtype")})["layers"]
            for layer, counts in wanted["layers"].items():
                most = cells.setdefault(layer, {})
                most.update({seed: max(count, most.get(seed, 1)) for seed, count in counts.items()})
    return found


def asked_before(store: FeatureStore, source: str, *, whole_maps: bool = True) -> dict[str, dict[str, Any]]:
    """What was asked for of a known source; in a store of before, its vectors.

    Args:
        store: the store.
        source: the source's name.
        whole_maps: count stored activation maps too; `finetune` stores some that nobody asked `extract` for.
    """
    if found := store.requests(source):
        return {fingerprint: wanted for fingerprint, wanted in found.items() if wanted.get("layers")}
    stored = {space.fingerprint: store.columns_of(source, space.fingerprint) for space in store.spaces if space.layers}
    return {fingerprint: _stored(columns, whole_maps) for fingerprint, columns in stored.items() if columns}


def keep_asked(store: FeatureStore, writer: StoreWriter, records: SourceRecords) -> None:
    """Note for a source of a store of before what was asked for, so that no later vectors are taken for it."""
    if records.name in store.sources() and not store.requests(records.name):
        recipes = _recipes(store)
        for fingerprint, wanted in asked_before(store, records.name).items():
            recipe = recipes[fingerprint]
            records.request(writer.space(recipe).id, {"backbone": recipe.backbone, **wanted})


def _stored(columns: Sequence[tuple[str, str]], whole_maps: bool) -> dict[str, Any]:
    pooled = [one for one in columns if whole_maps or not one[0].endswith(":none")]
    return {"layers": _cells(pooled or columns), "dtype": None}


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
    seed = _seed(asked, kept)
    if asked.views is not None and asked.views > 1:
        # Whole activation maps are large, so they get more views only where they are named.
        for name in named or [name for name in cells if not name.endswith(":none")] or list(cells):
            cells[name][seed] = max(asked.views, cells[name].get(seed, 1))
    if any(cells.values()):
        _check_augmentable(network.recipe)
    return Request(network, network.resolve_layers(list(cells)), cells, asked.dtype or kept.get("dtype"))


def _check_seed(asked: Asked, before: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a seed that says nothing, and views of which it is not clear what seed they have."""
    used = {seed for kept in before.values() for seed in _seeds(kept)}
    if asked.seed is not None and asked.views is None and asked.seed not in used:
        there = f" There are views of the {_named(sorted(used))}." if used else ""
        raise UsageError(
            f"The seed {asked.seed} alone asks for nothing: it is that of the augmented views, and there are none of "
            f"it.{there} Say with --views K how many versions of each image there shall be, or omit --seed."
        )
    for kept in before.values() if asked.backbone is None else ():
        _seed(asked, kept)


def _seed(asked: Asked, kept: Mapping[str, Any]) -> int:
    """The seed of views that are added: without one given, that of the views there are, of several 0."""
    used = _seeds(kept)
    if asked.seed is not None:
        return asked.seed
    if asked.views is not None and asked.views > 1 and len(used) > 1 and used[0] != 0:
        raise UsageError(f"There are views of the {_named(used)}. Say with --seed N which of them get more.")
    return used[0] if used else 0


def _seeds(kept: Mapping[str, Any]) -> list[int]:
    return sorted({int(seed) for counts in kept.get("layers", {}).values() for seed in counts})


def _named(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {' and '.join(map(str, seeds))}"


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


def _called(fingerprint: str, recipe: Recipe, *others: Recipe) -> str:
    return f"{fingerprint[:12]} ({_in_words(recipe, *(other for other in others if other != recipe))})"
