"""The one family of exceptions that featcache raises on purpose.

    FeatcacheError
    ├── UsageError            the call itself is wrong: names, options, paths        (exit code 2)
    │   ├── UnknownNameError      no backbone, layer, head, space … of that name
    │   ├── SourceError           a folder or manifest that cannot be a source
    │   └── NotAStoreError        a path that is no store
    ├── StoreError            the store cannot do what was asked
    │   ├── StoreFormatError      written by a newer featcache
    │   ├── DamagedStoreError     what is on disk contradicts itself
    │   ├── DiskFullError         no room is left for what should be written
    │   ├── StoreBusyError        another process holds the store for too long
    │   └── MissingVectorsError   the vectors asked for were not extracted, or were removed
    │       └── ShardGoneError        a shard's file is no longer there
    ├── RecipeMismatchError   vectors or heads made by another recipe or layer
    ├── UnusableImageError    one image that cannot be used; extraction puts it into quarantine
    │   └── TransientImageError     another time it may be usable; the next run tries it again
    │       └── ImageMemoryError      there was not enough memory for it
    ├── WeightsError          weights that are absent, or do not fit the network
    ├── ConversionError       a network that a runtime cannot run as eager torch does
    ├── TrainingError         a training that cannot go on: its loss, or its checkpoint
    ├── BundleError           a ``.fch`` file that is not a bundle, or a head that cannot be one
    └── MissingExtraError     an optional part that is not installed (also an ``ImportError``)

There is one warning, `GridEdgeWarning`.

Every message says what is wrong, where, why, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from featcache.core.visible import visible


class FeatcacheError(Exception):
    """Base of all errors that featcache raises on purpose; ``exit_code`` is the command line's."""

    exit_code = 1

    def __str__(self) -> str:
        # A name in the message may come from anybody's file.
        return visible(super().__str__())


class UsageError(FeatcacheError, ValueError):
    """The call itself is wrong: an option, a name or a path."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that stands for nothing known: a backbone, layer, head, space, source or split."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str], advice: str = "") -> UnknownNameError:
        """Build the error for *name*, offering the nearest of the *known* names."""
        names = [str(k) for k in known]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        if near:
            hint = "Did you mean " + " or ".join(repr(n) for n in near) + "?"
        elif names:
            shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
            hint = f"Known: {shown}."
        else:
            hint = "There is none yet."
        return cls(" ".join(part for part in (f"No {kind} is called {name!r}.", hint, advice) if part))


class SourceError(UsageError):
    """A folder or manifest that cannot be read as a source of images."""


class NotAStoreError(UsageError):
    """A path that does not hold a featcache store."""


class StoreError(FeatcacheError):
    """The store cannot do what was asked."""


class StoreFormatError(StoreError):
    """The store, shard or recipe was written in a format that this version does not read."""


class DamagedStoreError(StoreError):
    """What is on disk contradicts itself: a shard, the catalogue, or the two against each other."""


class DiskFullError(StoreError):
    """No room is left on the disk; what was sealed before is whole."""


class StoreBusyError(StoreError):
    """Another process holds the store, or its catalogue, for longer than the waiting time."""


class MissingVectorsError(StoreError):
    """The vectors asked for are not in the store: never extracted, or removed since."""


class ShardGoneError(MissingVectorsError):
    """A shard's file is no longer there: its rows were moved by another process, or it was lost."""


class RecipeMismatchError(FeatcacheError):
    """Vectors or heads that were made by another recipe or from another layer."""


class UnusableImageError(FeatcacheError):
    """One image that cannot be used; the message is the reason kept in quarantine."""


class TransientImageError(UnusableImageError):
    """One image that cannot be used now, for a reason that says little of the image itself and may pass."""


class ImageMemoryError(TransientImageError):
    """There was not enough memory for one image."""


class WeightsError(FeatcacheError):
    """Weights that cannot be had, cannot be read safely, or do not fit the network."""


class ConversionError(FeatcacheError):
    """A network that a runtime cannot run, or not so that it gives what eager torch gives."""


class TrainingError(FeatcacheError):
    """A training that cannot go on: its loss is no longer finite, or its checkpoint cannot be read or written."""


class BundleError(FeatcacheError):
    """A file that is no bundle, or a head that cannot be saved or converted."""


class MissingExtraError(FeatcacheError, ImportError):
    """An optional part of featcache that is not installed."""


class GridEdgeWarning(UserWarning):
    """The best C of those that the head ``softmax`` tried is at the edge of its grid."""
