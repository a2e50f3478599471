"""Whatever order things happen in, a store gives for every image the vector of that image, or none."""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from PIL import Image

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.core import failpoints
from featcache.extraction.requests import remembered
from featcache.images.decode import decode_rgb
from tests.extraction import child

pytestmark = pytest.mark.slow

LAYERS = ("pooled", "body.0:mean")
POINTS = {
    verb: [point for point in failpoints.POINTS if point.startswith((verb, *more))]
    for verb, more in {
        "extract": ("seal", "adopt", "backup", "compact"),
        "compact": ("adopt", "backup"),
        "gc": ("adopt", "backup"),
        "repair": ("adopt", "backup"),
    }.items()
}


class StoreMachine(RuleBasedStateMachine):
    """A folder of images, a store, and a plain dict of what the store has to answer."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.photos, self.store = self.base / "photos", self.base / "s.fcache"
        self.drawn = 0
        self.network = tiny_backbone()
        self.expected: dict[bytes, dict[str, np.ndarray]] = {}
        self.rows: set[tuple[bytes, str]] = set()
        self.items: dict[str, tuple[bytes, str]] = {}
        # Every layer that any run asked for: a later run serves it too.
        self.asked: set[str] = set()
        self.exact = True
        # Whether a dead process may have left a shard that the next writer adopts.
        self.left_over = False
        # Whether anybody was at the store since it was last looked at.
        self.touched = False

    def teardown(self) -> None:
        shutil.rmtree(self.base)

    def draw(self, path: Path) -> None:
        rng = np.random.default_rng(self.drawn)
        self.drawn += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(path)
        data = path.read_bytes()
        layers = self.network.resolve_layers(LAYERS)
        vectors = self.network.forward(self.network.prepare(decode_rgb(data))[None], layers)
        self.expected[hashlib.sha256(data).digest()] = {name: vectors[name][0] for name in LAYERS}

    def pictures(self) -> list[Path]:
        return sorted(self.photos.rglob("*.png"))

    def listed(self) -> dict[str, tuple[bytes, str]]:
        return {
            str(p.relative_to(self.photos)): (hashlib.sha256(p.read_bytes()).digest(), p.parent.name)
            for p in self.pictures()
        }

    def run(self, work: str, *arguments: Any, point: str | None = None, passes: int = 0) -> dict[str, Any] | None:
        self.touched = True
        return child.run(work, *arguments, point=point, passes=passes)

    def look(self) -> None:
        """Read from the store what it holds, after a step whose outcome is not certain."""
        self.rows, self.items, self.exact = self.held(), self.catalogued(), False
        store = fc.open(self.store)
        self.asked = {layer for kept in remembered(store, self.photos.name).values() for layer in kept["layers"]}

    def held(self) -> set[tuple[bytes, str]]:
        store = fc.open(self.store)
        return {
            (sha256, layer)
            for space in store.spaces
            for layer in space.layers
            for (sha256,) in store.catalogue.query(
                "h", "SELECT sha256 FROM rows WHERE column_id = ?", (store.column(layer).column,)
            )
        }

    def catalogued(self) -> dict[str, tuple[bytes, str]]:
        store = fc.open(self.store)
        return {i.uri: (i.sha256, str(i.label)) for i in store.items()} if store.sources() else {}

    @initialize()
    def begin(self) -> None:
        for i in range(5):
            self.draw(self.photos / "ab"[i % 2] / f"{i}.png")
        self.extract(1, None, 0)

    @rule(label=st.sampled_from("abc"), n=st.integers(1, 4))
    def add(self, label: str, n: int) -> None:
        for _ in range(n):
            self.draw(self.photos / label / f"new{self.drawn}.png")

    @precondition(lambda self: len(self.pictures()) > 1)
    @rule(which=st.integers(0, 1000))
    def remove(self, which: int) -> None:
        pictures = self.pictures()
        pictures[which % len(pictures)].unlink()

    @rule(which=st.integers(0, 1000))
    def change(self, which: int) -> None:
        pictures = self.pictures()
        self.draw(pictures[which % len(pictures)])

    @rule(which=st.integers(0, 1000), label=st.sampled_from("abc"))
    def relabel(self, which: int, label: str) -> None:
        pictures = self.pictures()
        image = pictures[which % len(pictures)]
        (self.photos / label).mkdir(exist_ok=True)
        if not (self.photos / label / image.name).exists():
            image.rename(self.photos / label / image.name)

    @rule(
        count=st.integers(1, len(LAYERS)),
        point=st.one_of(st.none(), st.sampled_from(POINTS["extract"])),
        passes=st.integers(0, 3),
    )
    def extract(self, count: int, point: str | None, passes: int) -> None:
        layers, listed = LAYERS[:count], self.listed()
        asked = self.asked | set(layers)
        wanted = {(sha256, layer) for sha256, _ in listed.values() for layer in asked}
        report = self.run("extract", self.photos, self.store, list(layers), point=point, passes=passes)
        if report is None:
            assert self.rows <= self.held()
            self.look()
            self.left_over = True
            return
        if self.exact:
            assert report["computed"] == len({sha256 for sha256, _ in wanted - self.rows})
        assert report["quarantined"] == 0
        self.adopted()
        self.rows, self.items, self.asked, self.exact = self.rows | wanted, listed, asked, True

    def adopted(self) -> None:
        """A writer was there: what had been left over is in the store now."""
        if self.left_over:
            assert self.rows <= self.held()
            self.rows, self.left_over = self.held(), False

    @rule(point=st.one_of(st.none(), st.sampled_from(POINTS["compact"])))
    def compact(self, point: str | None) -> None:
        killed = self.run("compact", self.store, point=point) is None
        self.adopted()
        self.left_over = killed

    @rule(point=st.one_of(st.none(), st.sampled_from(POINTS["gc"])))
    def gc(self, point: str | None) -> None:
        kept = {sha256 for sha256, _ in self.items.values()}
        before = set(self.rows)
        killed = self.run("gc", self.store, point=point) is None
        held, wanted = self.held(), {(sha256, layer) for sha256, layer in before if sha256 in kept}
        if killed and before <= held:
            self.adopted()
        elif self.left_over:
            assert wanted <= held
            assert {sha256 for sha256, _ in held} <= kept
            self.rows = held
        else:
            self.rows = wanted
        self.left_over = killed

    @rule(
        damage=st.sampled_from(["a shard", "the catalogue", "a bit of the catalogue", "nothing"]),
        seed=st.integers(0, 1 << 30),
        point=st.one_of(st.none(), st.sampled_from(POINTS["repair"])),
    )
    def damage_and_repair(self, damage: str, seed: int, point: str | None) -> None:
        chance = random.Random(seed)
        catalogue, shards = self.store / "catalog.sqlite", sorted((self.store / "shards").rglob("*.h5"))
        if damage == "the catalogue":
            catalogue.unlink()
        elif damage != "nothing" and (shards or damage != "a shard"):
            file = chance.choice(shards) if damage == "a shard" else catalogue
            data = bytearray(file.read_bytes())
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            file.write_bytes(data)
        self.run("repair", self.store, point=point)
        self.run("repair", self.store)
        self.look()

    @invariant()
    def the_store_is_whole_and_right(self) -> None:
        if not self.touched:
            return
        self.touched = False
        report = fc.verify(self.store, progress=False)
        assert report.ok, report.damaged
        store = fc.open(self.store)
        assert self.held() == self.rows
        assert self.catalogued() == self.items
        for layer in {layer for _, layer in self.rows}:
            hashes = sorted(sha256 for sha256, of in self.rows if of == layer)
            for sha256, vector in zip(hashes, store.gather(hashes, [layer])[0], strict=True):
                expected = self.expected[sha256][layer]
                assert np.linalg.norm(vector - expected) <= 1e-4 * np.linalg.norm(expected)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
