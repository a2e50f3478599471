"""Detections read from a store that another process compacts meanwhile."""

from __future__ import annotations

import numpy as np
import pytest

from featcache.faces.detection import COLUMNS, FACE, Detector, StoredDetections
from featcache.store import FeatureStore, StoreWriter
from featcache.store.column import ColumnReader
from featcache.store.compact import compact
from featcache.store.sources import Record, SourceRecords
from tests.store.making import recipe


def test_rows_that_were_moved_in_between_are_read_where_they_are(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, keys = tmp_path / "s.fcache", [bytes([i]) * 32 for i in range(6)]
    rows = np.zeros((6, len(COLUMNS)), np.float32)
    rows[:, -1] = np.arange(6)
    for half in (slice(0, 3), slice(3, 6)):
        with StoreWriter(store) as writer:
            space = writer.space(recipe(Detector.name))
            space.declare(FACE, "0", 0, "float32")
            space.append(keys[half], {(FACE, "0"): rows[half]})
            space.seal()
            records = [Record(f"{i}.jpg", key, "a", None, None, 1, 2, 3, 4, 5) for i, key in enumerate(keys)]
            SourceRecords(writer.catalogue, "people", "/nowhere").save(records)
    opened = FeatureStore.open(store)
    expected = repr(StoredDetections(opened, opened.spaces[0].fingerprint).of(keys))
    asked = []

    def places_of_before(*arguments):
        found = real(*arguments)
        asked.append(set(found.values()))
        if len(asked) == 1:
            compact(store)
        return found

    real = ColumnReader.places
    monkeypatch.setattr(ColumnReader, "places", places_of_before)
    late = FeatureStore.open(store)
    assert repr(StoredDetections(late, late.spaces[0].fingerprint).of(keys)) == expected
    assert len(asked) == 2
    assert asked[0] != asked[1]
