"""The layer sets of a sweep, and whether their scores can be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featcache.core.errors import MissingVectorsError
from featcache.store import FeatureStore
from featcache.training.dataset import LabelledVectors


@dataclass(frozen=True, slots=True)
class LayerSet:
    """Some layers that are used together.

    Attributes:
        names: in network order.
        dtypes: for each layer those in which it is stored.
        problem: why it cannot take part.
    """

    names: list[str]
    dtypes: dict[str, Sequence[str]]
    problem: str | None = None


def layer_sets(store: FeatureStore, layers: str | Sequence[str] | None, space: str | None) -> list[list[str]]:
    """The layer sets that are meant, each once.

    Args:
        store: the store.
        layers: each text is one set; by default every layer alone and all together, without whole maps.
        space: which space.

    Raises:
        UnknownNameError: no stored layer is called so.
    """
    if layers is None:
        stored = list(store.space(space).layers)
        alone = [name for name in stored if not name.endswith(":none")] or stored
        found = [[name] for name in alone] + [alone]
    else:
        found = [store.layer_names(one, space) for one in ([layers] if isinstance(layers, str) else layers)]
    return [list(names) for names in dict.fromkeys(map(tuple, found))]


def comparable(
    store: FeatureStore, sets: Sequence[Sequence[str]], space: str | None, **which: Any
) -> tuple[list[LayerSet], LabelledVectors]:
    """The layer sets, and the items that they are compared on: those of the set that has vectors of most.

    Args:
        store: the store.
        sets: of `layer_sets`.
        space: which space.
        which: ``labels`` and ``source``, as for `LabelledVectors.from_store`.

    Raises:
        MissingVectorsError: no set has vectors of any labelled item.
    """
    columns = store.space(space).layers
    most: LabelledVectors | None = None
    contents: list[str | MissingVectorsError] = []
    for names in sets:
        try:
            examples = LabelledVectors.from_store(store, list(names), space=space, **which)
        except MissingVectorsError as error:
            contents.append(error)
            continue
        contents.append(_content(examples))
        if most is None or len(examples.items) > len(most.items):
            most = examples
    if most is None:
        raise next(error for error in contents if isinstance(error, MissingVectorsError))
    found = []
    for names, content in zip(sets, contents, strict=True):
        problem = None
        if isinstance(content, MissingVectorsError):
            problem = str(content)
        elif content != _content(most):
            problem = (
                f"not all of the {len(most.items):,} labelled items have these vectors. Run `featcache extract` with "
                "these --layers to compute the rest."
            )
        found.append(LayerSet(list(names), {name: columns[name].dtypes for name in names}, problem))
    return found, most


def _content(examples: LabelledVectors) -> str:
    digest = hashlib.sha256()
    for item in examples.items:
        digest.update(item.sha256)
    return digest.hexdigest()
