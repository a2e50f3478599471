"""What earlier processes learned of a backbone, so that its recipe is known without loading it.

An entry holds as long as the weights file has the size, times and inode that it had, and featcache and
the backbone's library have the same versions. It is only ever a shortcut: an entry that is damaged,
foreign or cannot be written is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from featcache.backbones.layers import Layer
from featcache.core.errors import FeatcacheError
from featcache.core.recipe import Recipe
from featcache.images.decode import DECODERS
from featcache.images.entry import FileStat
from featcache.images.transforms import IMPLEMENTATIONS

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class CachedRecipe:
    """What is known of a backbone: its recipe, the paths of its modules, and some of its layers."""

    recipe: Recipe
    names: list[str]
    layers: dict[str, Layer]


@dataclass(frozen=True, slots=True)
class RecipeCache:
    """The entry of one backbone.

    Attributes:
        name: the backbone's full name.
        weights: the file of weights that was asked for, if any.
        library: the package whose code makes the network.
    """

    name: str
    weights: str | None
    library: str

    def read(self) -> CachedRecipe | None:
        """What is known, or None where that is nothing or no longer holds."""
        found = _read(self._path())
        if found is None or found[0] != self._key():
            return None
        return found[1]

    def write(self, known: CachedRecipe, weights_file: Path, stat: FileStat) -> None:
        """Keep what is known; *weights_file* is where the weights came from, *stat* its state before they were read."""
        with suppress(OSError):
            data = {
                "format": _FORMAT,
                "key": self._key(),
                "weights_file": str(weights_file.resolve()),
                "stat": [stat.size, stat.mtime_ns, stat.ctime_ns, stat.inode],
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
        """Drop what turned out not to hold."""
        with suppress(OSError):
            self._path().unlink(missing_ok=True)

    def _key(self) -> list[str | None]:
        # Other code for the pixels is another recipe, even where the version was not raised for it.
        code = f"{DECODERS[0]} {IMPLEMENTATIONS[0]}"
        return [self.name, self.weights, _version("featcache"), self.library, _version(self.library), code]

    def _path(self) -> Path:
        digest = hashlib.sha256(json.dumps([self.name, self.weights]).encode()).hexdigest()
        return cache_folder() / "backbones" / f"{digest[:32]}.json"


def weights_used_for(recipe: Recipe) -> str | None:
    """The file of weights that was given for this recipe on this machine, if any and if it is unchanged."""
    for key, known in _entries():
        same = (known.recipe.backbone, known.recipe.weights) == (recipe.backbone, recipe.weights)
        if same and key[1] is not None:
            return key[1]
    return None


def cache_folder() -> Path:
    """The user's folder for what can be made again: ``FEATCACHE_CACHE``, or the system's place for it."""
    if given := os.environ.get("FEATCACHE_CACHE"):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "featcache"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "featcache" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featcache"


def _entries() -> Iterator[tuple[list[str | None], CachedRecipe]]:
    folder = cache_folder() / "backbones"
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        if (found := _read(path)) is not None:
            yield found


def _read(path: Path) -> tuple[list[str | None], CachedRecipe] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        stat = FileStat.of(os.stat(data["weights_file"]))
        if data["format"] != _FORMAT or [stat.size, stat.mtime_ns, stat.ctime_ns, stat.inode] != data["stat"]:
            return None
        layers = {
            str(name): Layer(str(name), int(position), tuple(int(n) for n in shape))
            for name, (position, shape) in data["layers"].items()
        }
        known = CachedRecipe(Recipe.from_json(data["recipe"]), [str(name) for name in data["names"]], layers)
        return list(data["key"]), known
    except (OSError, ValueError, KeyError, TypeError, AttributeError, FeatcacheError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
