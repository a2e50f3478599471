"""The recipes and layers of backbones, cached in the user's cache folder, so that they are known without torch.

An entry holds as long as the weights file keeps its size, times and inode, and featcache and the backbone's library
keep their versions. An entry that is damaged or of another version is ignored, one that cannot be written is skipped.

A file that was written a moment before it was read may have changed once more within the grain of its timestamps, so
its entry vouches for nothing. It says where to look: the weights are read and digested again, and by then the entry of
an unchanged file holds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from platformdirs import user_cache_path

from featcache.backbones.layers import Layer
from featcache.core.errors import FeatcacheError
from featcache.core.recipe import PixelPath, Recipe, StandardTransform
from featcache.images.decode import DECODERS
from featcache.images.entry import FileStat
from featcache.images.transforms import IMPLEMENTATIONS

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class CachedRecipe:
    """What is cached of a backbone.

    Attributes:
        recipe: at float32, with the default implementations.
        names: paths of its modules, in network order.
        layers: those that were resolved so far, by name.
    """

    recipe: Recipe
    names: list[str]
    layers: dict[str, Layer]


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A file of weights, as it was before it was read.

    Attributes:
        stat: its state.
        settled: whether that tells every later change; not so of a file that was written a moment before.
    """

    stat: FileStat
    settled: bool


@dataclass(frozen=True, slots=True)
class RecipeCache:
    """The entry of one backbone.

    Attributes:
        name: the backbone's full name.
        weights: the file of weights that was asked for, if any.
        library: the package whose code makes the network.
        transform: that of another size of its input; None for the published one.
    """

    name: str
    weights: str | None
    library: str
    transform: StandardTransform | None = None

    def at(self, pixels: PixelPath, known: CachedRecipe | None) -> tuple[RecipeCache, CachedRecipe | None]:
        """The entry of the same backbone at another size of its input, and what it holds, or *known* tells of it."""
        assert isinstance(pixels.transform, StandardTransform)  # a callable has one size
        made = replace(self, transform=pixels.transform)
        found = made.read()
        if found is None and known is not None:
            found = CachedRecipe(replace(known.recipe, pixels=pixels), known.names, {})
        return made, found

    def read(self) -> CachedRecipe | None:
        """The entry, or None if there is none that still holds."""
        found = _read(self._path())
        if found is None or not found.settled or found.key != self._key():
            return None
        return found.known

    def write(self, known: CachedRecipe, weights_file: Path, seen: SeenFile) -> None:
        """Write the entry; *weights_file* is where the weights came from, *seen* its state before they were read."""
        stat = [seen.stat.size, seen.stat.mtime_ns, seen.stat.ctime_ns, seen.stat.inode]
        with suppress(OSError):
            data = {
                "format": _FORMAT,
                "key": self._key(),
                "weights_file": str(weights_file.resolve()),
                "stat": stat if seen.settled else None,
                "unsettled": None if seen.settled else stat,
                "recipe": known.recipe.to_json(),
                "names": known.names,
                "layers": {name: [layer.position, list(layer.shape)] for name, layer in known.layers.items()},
            }
            path = self._path()
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(data), encoding="utf-8")
            os.replace(partial, path)

    def forget(self) -> None:
        """Delete the entry."""
        with suppress(OSError):
            self._path().unlink(missing_ok=True)

    def _key(self) -> list[str | None]:
        # Other code for the pixels is another recipe, even where the version was not raised for it.
        code = f"{DECODERS[0]} {IMPLEMENTATIONS[0]}"
        return [self.name, self.weights, _version("featcache"), self.library, _version(self.library), code]

    def _path(self) -> Path:
        size = [] if self.transform is None else [self.transform.resize, self.transform.crop]
        digest = hashlib.sha256(json.dumps([self.name, self.weights, *size]).encode()).hexdigest()
        return cache_folder() / "backbones" / f"{digest[:32]}.json"


def weights_used_for(recipe: Recipe) -> str | None:
    """The file of weights that was last given for this recipe on this machine, if it looks unchanged.

    Of a file that was just written then that is not certain; the digest of what is read from it is.
    """
    for entry in _entries():
        of = entry.known.recipe
        if entry.key[1] is not None and (of.backbone, of.weights) == (recipe.backbone, recipe.weights):
            return entry.key[1]
    return None


def cache_folder() -> Path:
    """The user's cache folder: ``FEATCACHE_CACHE``, or the one that the operating system has for that."""
    if given := os.environ.get("FEATCACHE_CACHE"):
        return Path(given)
    return user_cache_path("featcache", appauthor=False)


@dataclass(frozen=True, slots=True)
class _Entry:
    """What an entry says of a file that looks unchanged; *settled* if it certainly is."""

    key: list[str | None]
    known: CachedRecipe
    settled: bool


def _entries() -> Iterator[_Entry]:
    folder = cache_folder() / "backbones"
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        if (found := _read(path)) is not None:
            yield found


def _read(path: Path) -> _Entry | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        stat = FileStat.of(os.stat(data["weights_file"]))
        settled = data["stat"] is not None
        before = data["stat"] if settled else data["unsettled"]
        if data["format"] != _FORMAT or [stat.size, stat.mtime_ns, stat.ctime_ns, stat.inode] != before:
            return None
        layers = {
            str(name): Layer(str(name), int(position), tuple(int(n) for n in shape))
            for name, (position, shape) in data["layers"].items()
        }
        known = CachedRecipe(Recipe.from_json(data["recipe"]), [str(name) for name in data["names"]], layers)
        return _Entry(list(data["key"]), known, settled)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, FeatcacheError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
