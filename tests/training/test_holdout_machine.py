"""Whatever happens to images and labels, no later head learns from a held-out image or a near-duplicate of one."""

from __future__ import annotations

import functools
import hashlib
import io
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from PIL import Image

import featcache as fc
from featcache.backbones import tiny_backbone

if TYPE_CHECKING:
    from featcache.training.bundle import Bundle

pytestmark = pytest.mark.slow

AT_FIRST = 60
"""Images of each source; among fewer than 50 no near-duplicates are looked for."""


@functools.cache
def picture(number: int, version: int) -> bytes:
    """A smooth image as PNG; another version differs in one pixel."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC)).copy()
    pixels[5, 5, 2] ^= version
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class HoldoutMachine(RuleBasedStateMachine):
    """Two folders of images, a store, and a set of what was ever held out."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.store, self.attic = self.base / "s.fcache", self.base / "attic"
        self.drawn = 0
        self.versions: dict[int, int] = {}
        self.number_of: dict[bytes, int] = {}
        self.held: set[bytes] = set()
        self.heads = 0

    def teardown(self) -> None:
        shutil.rmtree(self.base)

    def put(self, source: str, label: str, number: int) -> None:
        version = self.versions[number] = self.versions.get(number, -1) + 1
        data = picture(number, version)
        self.number_of[hashlib.sha256(data).digest()] = number
        path = self.base / source / label / f"{number}-{version}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def images(self, *sources: str) -> list[Path]:
        return sorted(path for source in sources or "ab" for path in (self.base / source).rglob("*.png"))

    def pick(self, which: int) -> Path:
        images = self.images()
        return images[which % len(images)]

    @initialize()
    def begin(self) -> None:
        for source in "ab":
            self.add(source, "x", AT_FIRST // 2)
            self.add(source, "y", AT_FIRST // 2)

    @rule(source=st.sampled_from("ab"), label=st.sampled_from("xyz"), n=st.integers(1, 6))
    def add(self, source: str, label: str, n: int) -> None:
        for _ in range(n):
            self.put(source, label, self.drawn)
            self.drawn += 1

    @rule(which=st.integers(0, 1000), source=st.sampled_from("ab"), label=st.sampled_from("xyz"))
    def add_near_duplicates(self, which: int, source: str, label: str) -> None:
        for number in range(which % 7, self.drawn, 7):
            self.put(source, label if which % 2 else "xyz"[number % 3], number)

    @rule(which=st.integers(0, 1000), label=st.sampled_from("xyz"))
    def relabel(self, which: int, label: str) -> None:
        for path in self.images()[which % 5 :: 5]:
            place = path.parent.parent / label / path.name
            place.parent.mkdir(exist_ok=True)
            path.rename(place)

    @precondition(lambda self: min(len(self.images("a")), len(self.images("b"))) > AT_FIRST)
    @rule(which=st.integers(0, 1000))
    def remove(self, which: int) -> None:
        """Take the held-out images of a source away, or some others."""
        source = "ab"[which % 2]
        paths = self.images(source)
        held = [path for path in paths if hashlib.sha256(path.read_bytes()).digest() in self.held]
        for path in (held if which % 3 else paths[::4])[: len(paths) - AT_FIRST]:
            place = self.attic / source / path.parent.name / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)

    @precondition(lambda self: self.attic.exists())
    @rule(label=st.sampled_from(["x", "y", None]))
    def bring_back(self, label: str | None) -> None:
        for path in sorted(self.attic.rglob("*.png")):
            source, before, name = path.relative_to(self.attic).parts
            place = self.base / source / (label or before) / name
            place.parent.mkdir(exist_ok=True)
            path.rename(place)

    def extract(self) -> None:
        for source in "ab":
            fc.extract(self.base / source, self.store, backbone=tiny_backbone(), progress=False)

    @rule(head=st.sampled_from(["ridge", "centroid", "sweep"]), sources=st.sampled_from(["a", "b", "ab"]))
    def train(self, head: str, sources: str) -> None:
        self.extract()
        if head == "sweep":
            self.check(fc.sweep(self.store, ["centroid"], source=list(sources), progress=False).bundle, sources)
        else:
            self.check(fc.train(self.store, head, source=list(sources), progress=False), sources)

    @rule(which=st.integers(0, 1000), other=st.booleans())
    def train_on_some_labels(self, which: int, other: bool) -> None:
        """Few labels, or other ones than the folders'."""
        self.extract()
        paths = np.random.default_rng(which).permutation(np.array(self.images("a"), dtype=object))[:54]
        lines = ["path,label"]
        for i, path in enumerate(paths):
            lines.append(f"{path.relative_to(self.base / 'a').as_posix()},{'pqrst'[i % 5] if other else 'xy'[i % 2]}")
        (self.base / "few.csv").write_text("\n".join(lines) + "\n")
        bundle = fc.train(self.store, "ridge", source="a", labels_only=self.base / "few.csv", progress=False)
        self.check(bundle, len(paths))

    @rule(source=st.sampled_from("ab"))
    def finetune(self, source: str) -> None:
        self.extract()
        config = fc.TrainingConfig(epochs=1)
        bundle = fc.finetune(
            self.store, "body.1", views=1, config=config, backbone=tiny_backbone(), source=source, progress=False
        )
        self.check(bundle, source)

    def check(self, bundle: Bundle, of: str | int) -> None:
        self.heads += 1
        n = of if isinstance(of, int) else len(self.images(*of))
        learned = {row.tobytes() for row in bundle.trained_on}
        self.held |= {sha256 for sha256, (part, _) in fc.open(self.store).sides().items() if part == "test"}
        assert not learned & self.held
        assert not {self.number_of[one] for one in learned} & {self.number_of[one] for one in self.held}
        report = bundle.report
        assert report["near_duplicates"]["note"] is None
        assert len(learned) + report["score"]["n"] + report["near_duplicates"]["left_out"] == n


TestHoldout = HoldoutMachine.TestCase
TestHoldout.settings = settings(
    max_examples=4, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
)
