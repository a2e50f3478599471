"""Tar files that one path stands for: a file, a folder, ``shard-{000..009}.tar``, ``shard-*.tar``, or a list of paths.

`tar_files` is the only place that decides whether something given as a source is tar files.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from featcache.core.errors import SourceError, UsageError
from featcache.core.files import absolute
from featcache.images.formats import EXTENSIONS
from featcache.images.passed_over import is_hidden, is_system_folder

MAX_FILES = 100_000
"""Names that the braces of a pattern may stand for."""

_NUMBERED = re.compile(r"(?<!\d)(0\d+|\d{3}|\d{5,6})(-of-\d+)?$")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


def tar_files(given: Any) -> tuple[list[Path], str]:
    """The tar files that are given, and how a source of them is called.

    Args:
        given: a path, a pattern (``shard-{000..009}.tar``, ``shard-{a,b}.tar``, ``shard-*.tar``), or a list of paths;
            anything else stands for no tar files. So does a folder that holds images or folders beside its tar files.

    Returns:
        The files, sorted, as absolute paths in one folder, and the name. ``[]`` where *given* is something else.

    Raises:
        SourceError: a tar file is missing.
        UsageError: a list names other files too, or tar files in several folders.
    """
    is_path = isinstance(given, (str, os.PathLike))
    is_list = isinstance(given, (list, tuple)) and any(isinstance(one, (str, os.PathLike)) for one in given)
    if not is_path and not is_list:
        return [], ""
    # os.path answers where Path raises: names that are too long, folders that may not be entered.
    is_folder = is_path and os.path.isdir(given)
    names = _files_alone(Path(given)) if is_folder else [str(one) for one in ([given] if is_path else given)]
    tars = [name for name in names if name.lower().endswith(".tar")]
    if is_list:
        if len(tars) < len(names):
            other = next(name for name in names if name not in tars)
            raise UsageError(
                f"A list is taken as one source where it names tar files, which {other!r} is not. Give the folder of "
                "the images, or a CSV file that lists them (path,label)."
            )
        found = _in_one_folder(tars)
    elif is_folder:
        return [Path(tar) for tar in sorted(tars)], Path(given).resolve().name or "root"
    elif not tars or (os.path.exists(given) and not os.path.isfile(given)):
        return [], ""
    elif os.path.isfile(given):
        tar = Path(given).resolve()
        return [tar], tar_source_name(tar)
    elif any(sign in os.path.basename(given) for sign in "{*?["):
        found = _matching(str(given))
    else:
        raise SourceError(f"There is nothing at {given}. Give a folder of images, a CSV manifest or tar files.")
    return found, found[0].parent.name or "root"


def tar_source_name(tar: Path) -> str:
    """What the source of one tar file is called: its folder if it is numbered as shards are, else as itself.

    Args:
        tar: absolute path. Only its own name counts, not what else lies there: that may change, the name must not.
            The number begins with 0 or has three, five or six digits: four may be a year, eight a date.
    """
    return (tar.parent.name or "root") if _NUMBERED.search(tar.stem) else tar.stem


def _files_alone(folder: Path) -> list[str]:
    """The files of a folder that holds no image and no folder; else none."""
    try:
        with os.scandir(folder) as listing:
            inside = [e for e in listing if not is_hidden(e.name) and not is_system_folder(e.name)]
            if any(entry.is_dir() or os.path.splitext(entry.name)[1].lower() in EXTENSIONS for entry in inside):
                return []
            return [str(folder.resolve() / entry.name) for entry in inside if entry.is_file()]  # a pipe would block
    except OSError:
        return []  # listing it as a folder of images says what is wrong


def _in_one_folder(tars: Sequence[str]) -> list[Path]:
    """Each tar file once, sorted, as absolute paths."""
    found = sorted({Path(os.path.realpath(tar)) for tar in tars})
    missing = [str(tar) for tar in found if not os.path.isfile(tar)]
    if missing:
        raise SourceError(f"{len(missing)} of {len(found)} tar files are missing: {', '.join(missing[:5])}.")
    folders = sorted({str(tar.parent) for tar in found})
    if len(folders) > 1:
        raise UsageError(
            f"The tar files of one source lie in one folder, these are in {len(folders)}: {', '.join(folders[:5])}. "
            "Extract each folder by itself, with a name of its own."
        )
    return found


def _matching(pattern: str) -> list[Path]:
    """The files that a pattern stands for, sorted, as absolute paths.

    Braces and wildcards stand in the last part only, so that all files lie in one folder. All files that braces name
    have to be there, so that a missing shard is seen; of wildcards one has to.
    """
    folder, last = os.path.split(absolute(pattern))
    real = os.path.realpath(folder)
    found: set[str] = set()
    missing = []
    names = _expanded(last)
    for name in names:
        place = os.path.join(real, name)
        here = glob.glob(os.path.join(glob.escape(real), name)) if glob.has_magic(name) else [place]
        files = [path for path in here if os.path.isfile(path)]
        found |= set(files)
        if not files:
            missing.append(name)
    if not found:
        raise SourceError(f"No file in {folder} has a name like {last}. Look there what the tar files are called.")
    if missing:
        listed = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise SourceError(
            f"{pattern}: {len(missing)} of {len(names)} names stand for no file in {folder}: {listed}. "
            "Fetch what is missing, or give a narrower range."
        )
    return [Path(path) for path in sorted(found)]


def _expanded(name: str) -> list[str]:
    """The names that the braces stand for, as in bash."""
    # braceexpand holds all numbers of a range in memory.
    if math.prod(abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(name)) > MAX_FILES:
        raise SourceError(f"{name} stands for more than {MAX_FILES:,} files.")
    try:
        names = list(islice(braceexpand(name, escape=False), MAX_FILES + 1))
    except ValueError as error:
        raise SourceError(f"{name} has a brace that is not closed.") from error
    if len(names) > MAX_FILES:
        raise SourceError(f"{name} stands for more than {MAX_FILES:,} files.")
    return names
