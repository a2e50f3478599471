"""Datasets with the interfaces of torchvision and of Hugging Face's ``datasets``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Pairs:
    """Items ``(image, target)``, as torchvision gives them."""

    def __init__(self, items: Sequence[tuple[Any, Any]], classes: list[str] | None = None) -> None:
        self.items, self.loaded = items, 0
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        self.loaded += 1
        return self.items[place]


class _Image:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class _ClassLabel:
    def __init__(self, names: list[str]) -> None:
        self.names = names


# The library's types are known by their names.
ImageFeature = type("Image", (_Image,), {})
ClassLabelFeature = type("ClassLabel", (_ClassLabel,), {})


class Table:
    """Rows with typed columns, as `datasets.Dataset` gives them; an image is decoded unless its type says not to."""

    def __init__(self, rows: list[dict[str, Any]], features: dict[str, Any], formatted: bool = False) -> None:
        self.rows, self.features, self.formatted = rows, features, formatted

    def __len__(self) -> int:
        return len(self.rows)

    def with_format(self, kind: str | None) -> Table:
        return Table(self.rows, self.features, kind is not None)

    def cast_column(self, column: str, feature: Any) -> Table:
        return Table(self.rows, self.features | {column: feature}, self.formatted)

    def select_columns(self, columns: list[str]) -> Table:
        return Table(self.rows, {name: self.features[name] for name in columns}, self.formatted)

    def __getitem__(self, key: int | str) -> Any:
        assert not self.formatted, "a format turns images into tensors"
        if isinstance(key, str):
            assert not isinstance(self.features[key], _Image), "a column of images is many images at once"
            return [row[key] for row in self.rows]
        row = {name: self.rows[key][name] for name in self.features}
        for name, feature in self.features.items():
            if isinstance(feature, _Image) and feature.decode:
                raise AssertionError("the bytes were to be taken, not the image")
            assert name in row
        return row
