"""Several tar files by one name: ``shard-{000..009}.tar``, ``shard-{a,b}.tar``, ``shard-*.tar``."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featcache.core.errors import SourceError, UsageError

MOST = 100_000

_NUMBERED = re.compile(r"(?<!\d)(0\d+|\d{3}|\d{5,6})(-of-\d+)?$")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def tar_source_name(tar: Path) -> str:
    """What the source of one tar file is called: its folder if it is numbered as shards are, else as itself.

    Args:
        tar: absolute path. Only its own name counts, not what else lies there: that may change, the name must not.
            The number begins with 0 or has three, five or six digits: four may be a year, eight a date.
    """
    return (tar.parent.name or "root") if _NUMBERED.search(tar.stem) else tar.stem


def is_tar_pattern(name: str) -> bool:
    """Whether a name that is no file's stands for several tar files."""
    return name.lower().endswith(".tar") and any(sign in os.path.basename(name) for sign in "{*?[")


def tars_of(pattern: str) -> list[Path]:
    """The files that a pattern stands for, sorted, as absolute paths.

    Args:
        pattern: braces and wildcards stand in the last part only, so that all files lie in one folder. All files that
            braces name have to be there, so that a shard that is missing is seen; of wildcards one has to.

    Raises:
        SourceError: there is none, or one is missing.
    """
    folder, last = os.path.split(os.path.abspath(pattern))
    names = [os.path.join(os.path.realpath(folder), name) for name in _expanded(last)]
    found: set[str] = set()
    missing = []
    for name in names:
        wild = glob.has_magic(name.removeprefix(os.path.realpath(folder)))
        here = glob.glob(os.path.join(glob.escape(os.path.dirname(name)), os.path.basename(name))) if wild else [name]
        files = [path for path in here if os.path.isfile(path)]
        found |= set(files)
        if not files:
            missing.append(os.path.basename(name))
    if not found:
        raise SourceError(f"No file in {folder} has a name like {last}. Look there what the tar files are called.")
    if missing:
        shown = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise SourceError(
            f"{pattern}: {len(missing)} of {len(names)} names stand for no file in {folder}: {shown}. "
            "Fetch what is missing, or give a narrower range."
        )
    return [Path(path) for path in sorted(found)]


def tars_named(paths: Sequence[Any]) -> list[Path]:
    """Tar files that are named one by one, each once, sorted, as absolute paths.

    Raises:
        UsageError: these are no paths of tar files, or not in one folder.
        SourceError: one of them is missing.
    """
    others = [str(path) for path in paths if not str(path).lower().endswith(".tar")]
    if others:
        raise UsageError(
            f"A list is taken as one source where it names tar files, which {others[0]!r} is not. Give the folder of "
            "the images, or a CSV file that lists them (path,label)."
        )
    tars = sorted({Path(os.path.realpath(path)) for path in paths})
    missing = [str(tar) for tar in tars if not os.path.isfile(tar)]
    if missing:
        raise SourceError(f"{len(missing)} of {len(tars)} tar files are not there: {', '.join(missing[:5])}.")
    folders = sorted({str(tar.parent) for tar in tars})
    if len(folders) > 1:
        raise UsageError(
            f"The tar files of one source lie in one folder, these are in {len(folders)}: {', '.join(folders[:5])}. "
            "Extract each folder by itself, with a name of its own."
        )
    return tars


def _expanded(name: str) -> list[str]:
    """The names that the braces stand for."""
    match = _BRACES.search(name)
    if match is None:
        return [name]
    inner = match[1]
    bounds = _RANGE.fullmatch(inner)
    if bounds is None:
        choices = inner.split(",")
    else:
        first, last = int(bounds[1]), int(bounds[2])
        if last - first >= MOST:
            raise SourceError(f"{name} stands for more than {MOST:,} files.")
        width = len(bounds[1]) if bounds[1].startswith("0") else 0
        choices = [f"{number:0{width}}" for number in range(first, last + 1)]
    names = [name[: match.start()] + choice + rest for choice in choices for rest in _expanded(name[match.end() :])]
    if len(names) > MOST:
        raise SourceError(f"{name} stands for more than {MOST:,} files.")
    return names
