"""The file of a bundle: safetensors, with one key of metadata, ``featcache``, that holds JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import BundleError, UsageError


def write(target: Path, data: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write the file aside, then rename it into place, so that there is a whole file or none.

    Raises:
        BundleError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        save_file(rows, partial, metadata={"featcache": json.dumps(data)})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"The head cannot be written to {target}: {error}.") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON and the tensors, of which nothing is checked yet.

    Raises:
        UsageError: there is no file at *path*.
        BundleError: it is no such file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        if path.exists():
            raise UsageError(
                f"{path} is a folder, not a featcache head. A head is a file that `featcache train` wrote with -o; on "
                "the command line it comes first."
            )
        raise UsageError(f"There is no head at {path}. `featcache train STORE -o {path}` makes one.")
    try:
        with safe_open(path, framework="numpy") as file:
            data = json.loads((file.metadata() or {})["featcache"])
            return dict(data), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, ValueError, TypeError, OSError, RecursionError) as error:
        raise BundleError(f"{path} is not a featcache head: {error}.") from error
