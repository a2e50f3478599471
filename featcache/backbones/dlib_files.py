"""The model files of dlib that the extra ``faces`` installs: where pip put them, and that they are the published ones.

Neither dlib nor the package that carries the files is imported: the latter cannot be where setuptools is absent.
A file is used only if it is the published one to the last byte, since another would make other vectors.
"""

from __future__ import annotations

import hashlib
import importlib.util
import stat
from dataclasses import dataclass
from pathlib import Path

from featcache.core.errors import MissingExtraError, WeightsError

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
