"""The store: sealed shards of vectors, and the catalogue that says what they are.

Reading goes through `FeatureStore`, writing through `StoreWriter`; ``docs/format.md`` describes the
files.
"""

from featcache.store.column import Vectors
from featcache.store.feature_store import FeatureStore
from featcache.store.spaces import Item, LayerColumn, Space
from featcache.store.verify import VerifyReport
from featcache.store.writer import StoreWriter

__all__ = ["FeatureStore", "Item", "LayerColumn", "Space", "StoreWriter", "Vectors", "VerifyReport"]
