"""Refuse an argument of the wrong kind at the door, in words, before any work is done.

`checked` reads a function's own annotations, so there is one place that says what a parameter may be. Only kinds that
can be told from one value are checked: numbers, text, paths, lists of these, and featcache's own classes. An annotation
with anything else in it (a protocol, a callable) lets every value through.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

from featcache.core.errors import UsageError

_P = ParamSpec("_P")
_T = TypeVar("_T")

_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "None": ("None", lambda value: value is None),
    "bool": ("True or False", lambda value: isinstance(value, bool) or _of_numpy(value, "bool", "bool_")),
    "int": ("a whole number", lambda value: isinstance(value, Integral) and not isinstance(value, bool)),
    "float": ("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool)),
    "str": ("text", lambda value: isinstance(value, str)),
    "bytes": ("bytes", lambda value: isinstance(value, bytes)),
    "Path": ("a path", lambda value: isinstance(value, os.PathLike) and isinstance(os.fspath(value), str)),
    "np.ndarray": ("an array", lambda value: _of_numpy(value, "ndarray")),
    # Methods alone: to ask for a backbone's recipe loads it, and digests its weights.
    "Extractor": ("a backbone", lambda value: all(hasattr(value, name) for name in ("prepare", "resolve_layers"))),
}
_PLURALS = {
    "a whole number": "whole numbers",
    "a number": "numbers",
    "text": "texts",
    "a path": "paths",
    "bytes": "bytes",
}
_ANYTHING: tuple[str, Callable[[Any], bool]] = ("", lambda _: True)
_LIST = re.compile(r"(?:Sequence|list|tuple)\[(\w+)(?:, \.\.\.)?\]")
_OWN = frozenset(
    [
        "Backbone",
        "Bundle",
        "Decoded",
        "ExtractionConfig",
        "FeatureStore",
        "Image",
        "Layer",
        "PixelPath",
        "Recipe",
        "RecipeCache",
        "StandardTransform",
        "TrainingConfig",
    ]
)
_UNPACKED = re.compile(r"Unpack\[(\w+)\]")
_LONGEST_NAME, _LONGEST_PATH = 255, 4096
"""Bytes of a file's name and of a path that common file systems allow."""


def checked(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Check the arguments of every call of a public function against its annotations.

    Args:
        function: annotated, in a module with ``from __future__ import annotations``.

    Returns:
        The function; it raises `UsageError` where an argument is of another kind, `TypeError` where it has no argument
        of that name, those of a ``**selection: Unpack[…]`` included; and it gets a list where an array was given for
        one.

    Example:
        >>> @checked
        ... def draw(n: int, seed: int = 0) -> None: ...
        >>> draw("3")
        Traceback (most recent call last):
        featcache.core.errors.UsageError: n is a whole number, not '3'.
    """

    @functools.cache
    def expected() -> tuple[inspect.Signature, dict[str, str], frozenset[str] | None]:
        # At the first call, as most functions of a process are never called.
        signature = inspect.signature(function)
        kinds = {
            name: parameter.annotation
            for name, parameter in signature.parameters.items()
            if isinstance(parameter.annotation, str) and parameter.kind is not parameter.VAR_KEYWORD
        }
        return signature, kinds, _keywords(function, signature)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        signature, kinds, known = expected()
        if known is not None and (unknown := kwargs.keys() - known):
            raise TypeError(_no_argument(function.__qualname__, min(unknown), known))
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            if name in kinds:
                check(name, value, kinds[name])
                if name == "seed" and isinstance(value, Integral) and value < 0:
                    raise UsageError(f"seed is a whole number from 0 on, not {value}.")
                if (
                    _of_numpy(value, "ndarray")
                    and value.ndim == 1
                    and any(map(_LIST.fullmatch, _alternatives(kinds[name])))
                ):
                    given.arguments[name] = value.tolist()  # its truth is not defined, and its texts are no `str`
                elif _of_numpy(value, "integer") and "int" in _alternatives(kinds[name]):
                    given.arguments[name] = value.item()  # torch takes no other
        return function(*given.args, **given.kwargs)

    return call


def _keywords(function: Callable[..., Any], signature: inspect.Signature) -> frozenset[str] | None:
    """All names that a call may give; None where any may be."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = {name for name, one in signature.parameters.items() if one.kind in named} - {"self"}
    for one in signature.parameters.values():
        if one.kind is one.VAR_KEYWORD:
            options = _UNPACKED.fullmatch(str(one.annotation))
            if options is None:
                return None
            names |= vars(sys.modules[function.__module__])[options[1]].__annotations__.keys()
    return frozenset(names)


def _no_argument(function: str, name: str, known: Iterable[str]) -> str:
    called = function.rpartition("<locals>.")[2].removesuffix(".__init__")
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"{called}() has no argument {name!r}. " + (
        f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(sorted(known))}."
    )


def check_fields(made: Any) -> None:
    """Check the fields of a dataclass against their annotations, as `checked` does.

    Raises:
        UsageError: a value of another kind.
    """
    for field in fields(made):
        check(field.name, getattr(made, field.name), str(field.type))


def check(name: str, value: Any, annotation: str) -> None:
    """Check one value.

    Args:
        name: of the parameter, for the message.
        value: what was given.
        annotation: as it stands in the code, such as ``str | Path | None``.

    Raises:
        UsageError: the value is of none of these kinds, or is a path that no file can have.
    """
    kinds = [_kind(part) for part in _alternatives(annotation)]
    if any(kind is None for kind in kinds):
        return
    if not any(holds(value) for _, holds in kinds):  # type: ignore[misc]  # None is excluded above
        words = list(dict.fromkeys(said for said, _ in kinds))  # type: ignore[misc]
        listed = ", ".join(words[:-1]) + " or " * (len(words) > 1) + words[-1]
        raise UsageError(f"{name} is {listed}, not {described(value)}.")
    if "Path" in annotation and isinstance(value, (str, os.PathLike)):
        check_path(name, os.fspath(value))


def check_path(name: str, path: str) -> None:
    """Check that a file could have this path.

    Raises:
        UsageError: it holds a NUL character, or is too long.
    """
    if "\0" in path:
        raise UsageError(f"{name} is a path, and none has a NUL character in it: {path[:80]!r}.")
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        raise UsageError(f"{name} is a path with letters that no file's name can have: {path[:80]!r}.") from None
    if len(encoded) >= _LONGEST_PATH or max(map(len, encoded.split(os.fsencode(os.sep)))) > _LONGEST_NAME:
        raise UsageError(f"{name} is a path that is too long for any file: {path[:80]!r}… ({len(encoded):,} bytes).")


def described(value: Any) -> str:
    """What was given, for a message: short values as they are, others by their type and shape."""
    if isinstance(value, (str, bytes, int, float, bool, os.PathLike, type(None))):
        shown = repr(value)
        return shown if len(shown) <= 80 else f"{shown[:77]}…"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and all(isinstance(n, int) for n in shape):
        return f"a {type(value).__name__} of shape {shape}"
    if isinstance(value, (list, tuple, set, dict)):
        first = "" if not value else f" of {type(next(iter(value))).__name__}"
        return f"a {type(value).__name__}{first}"
    return f"a {value.__name__} itself" if isinstance(value, type) else f"a {type(value).__name__}"


def _of_numpy(value: Any, *names: str) -> bool:
    # NumPy is not imported for this: `featcache --help` has no need of it.
    return any(kind.__module__ == "numpy" and kind.__name__ in names for kind in type(value).__mro__)


@functools.cache
def _alternatives(annotation: str) -> tuple[str, ...]:
    """The parts between the bars that stand outside of brackets."""
    parts, depth = [""], 0
    for letter in annotation:
        depth += (letter == "[") - (letter == "]")
        if letter == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return tuple(part.strip() for part in parts)


@functools.cache
def _kind(part: str) -> tuple[str, Callable[[Any], bool]] | None:
    """How one alternative is called, and whether a value is one; None where that cannot be told."""
    if part in _KINDS:
        return _KINDS[part]
    if part in _OWN:
        return f"a {part}", lambda value: any(kind.__name__ == part for kind in type(value).__mro__)
    if part.startswith("Callable["):
        return "a function", callable
    if part.startswith("Mapping["):
        return "a mapping", lambda value: isinstance(value, Mapping)
    if part.startswith("Iterable["):
        return _iterable(_kind(part.replace("Iterable", "Sequence", 1)))
    listed = _LIST.fullmatch(part)
    if listed is None:
        return None
    one = _ANYTHING if listed[1] == "Any" else _kind(listed[1])
    if one is None:
        return None
    said, holds = one

    def all_of_them(value: Any) -> bool:
        many = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        return (many or (_of_numpy(value, "ndarray") and value.ndim == 1)) and all(holds(each) for each in value)

    return f"a list of {_PLURALS.get(said, said.removeprefix('a ') + 's')}" if said else "a list", all_of_them


def _iterable(kind: tuple[str, Callable[[Any], bool]] | None) -> tuple[str, Callable[[Any], bool]] | None:
    """The kind of what can be gone through: a list as *kind* says, or a set or iterator, which is not looked into."""
    if kind is None:
        return None
    said, holds = kind

    def holds_or_unseen(value: Any) -> bool:
        if isinstance(value, Sequence) or hasattr(value, "__array__"):
            return holds(value)
        return hasattr(value, "__iter__") and not isinstance(value, (bytes, type))

    return said, holds_or_unseen
