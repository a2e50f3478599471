"""Measure how the code is built: rooms, modules, lines, import circles, parameters, and how far each task walks.

Usage: python scripts/structure.py [--run] [--json]

Only the sources are read; with ``--run`` a few tasks are run as well (`scripts/walks.py`). With ``--json`` every count
of things becomes the list of their names.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import tokenize
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent / "featcache"


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module's dotted name and file."""
    names = {path: path.relative_to(root.parent).with_suffix("").parts for path in sorted(root.rglob("*.py"))}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in names.items()}


def rooms(root: Path = ROOT) -> list[str]:
    """Packages and loose modules at the top, without ``__init__`` and ``__main__``."""
    return sorted({path.relative_to(root).parts[0] for path in root.rglob("*.py")} - {"__init__.py", "__main__.py"})


def longest_module(root: Path = ROOT) -> tuple[int, str]:
    """Lines of the longest module, and its name."""
    return max((_lines(path), name) for name, path in modules(root).items())


def code_lines(text: str) -> int:
    """Lines of a source that hold code: no docstrings, comments, imports or blank lines."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    spans = [range(t.start[0], t.end[0] + 1) for t in tokens if t.type not in skipped]
    not_code = [
        range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.stmt) and (isinstance(node, ast.Import | ast.ImportFrom) or _is_docstring(node))
    ]
    return len(set(chain(*spans)) - set(chain(*not_code)))


def docstring_lines(root: Path = ROOT) -> tuple[int, int]:
    """Docstring lines of public functions and methods, and how many of these there are; commands apart."""
    public = [node for name, node in functions(root) if not node.name.startswith("_") and not is_command(name, node)]
    return sum(len((ast.get_docstring(node) or "").splitlines()) for node in public), len(public)


def functions(root: Path = ROOT) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function and method, with the name of its module."""
    for name, path in modules(root).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield name, node


def is_command(module: str, function: ast.FunctionDef) -> bool:
    """Whether Typer makes a command of this function."""
    called = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    names = {getattr(d, "attr", getattr(d, "id", None)) for d in called}
    return module.startswith("featcache.cli") and bool(names & {"command", "verb", "callback"})


def parameters(function: ast.FunctionDef) -> int:
    """How many parameters a function takes, *self* and *cls* apart."""
    given = function.args
    named = [argument.arg for argument in given.posonlyargs + given.args]
    return len(named) + len(given.kwonlyargs) - (named[:1] in (["self"], ["cls"]))


def many_parameters(least: int = 7, root: Path = ROOT) -> list[tuple[int, str]]:
    """Functions with at least that many parameters, Typer commands apart, most first."""
    found = [(parameters(f), f"{name}:{f.name}") for name, f in functions(root) if not is_command(name, f)]
    return sorted([one for one in found if one[0] >= least], reverse=True)


def imports(root: Path = ROOT) -> dict[str, set[str]]:
    """The modules of the package that each of them imports anywhere in its file, for type checking too."""
    known = modules(root)
    graph: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & known.keys()
            elif isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= inner & known.keys()
                if inner - known.keys() and node.module in known:
                    graph[name].add(node.module)
        graph[name].discard(name)
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which imports, over others, every other one of its group."""
    reach = {name: _reachable(name, graph) for name in graph}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return sorted(sorted(group) for group in groups if group)


def tar_tests(root: Path = ROOT) -> list[str]:
    """Places that decide whether a name is a tar file's, the command line apart.

    Such a place compares a text with ``.tar``, or calls a function that does so and returns a bool; that function
    itself is a place only if nobody else calls it.
    """
    found = {(name, f.name): f for name, f in functions(root) if not name.startswith("featcache.cli")}
    tests = {key for key, f in found.items() if any(map(_compares_with_tar, ast.walk(f)))}
    predicates = {key[1] for key in tests if ast.unparse(found[key].returns or ast.Constant(None)) == "bool"}
    places = []
    for (module, name), function in found.items():
        for node in ast.walk(function):
            called = isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", None))
            if called in predicates or (name not in predicates and _compares_with_tar(node)):
                places.append(f"{module}:{name}")
    return sorted(places)


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _reachable(name: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph[name])
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += graph[one]
    return seen


def _compares_with_tar(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        return any(isinstance(inner, ast.Constant) and inner.value == ".tar" for inner in ast.walk(node))
    is_endswith = isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "endswith"
    return is_endswith and any(isinstance(inner, ast.Constant) and inner.value == ".tar" for inner in ast.walk(node))


def static() -> dict[str, Any]:
    """What the sources alone show."""
    texts = [path.read_text(encoding="utf-8") for path in modules().values()]
    lines, public = docstring_lines()
    everything = [parameters(function) for _, function in functions()]
    return {
        "rooms at the top": rooms(),
        "modules": len(texts),
        "longest module": "{} ({})".format(*longest_module()),
        "lines of code": sum(map(code_lines, texts)),
        "all lines": sum(len(text.splitlines()) for text in texts),
        "docstring lines per public function": f"{lines / public:.2f} ({lines:,} in {public:,})",
        "import circles": [" ↔ ".join(circle) for circle in circles(imports())],
        "functions with 7 parameters or more, Typer apart": [f"{name} {n}" for n, name in many_parameters()],
        "the same with Typer commands": sum(n >= 7 for n in everything),
        "most parameters, Typer apart; with Typer": f"{many_parameters()[0][0]}; {max(everything)}",
        "places that decide whether a name is a tar file": tar_tests(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", action="store_true", help="run the tasks too and count the modules they enter")
    parser.add_argument("--json", action="store_true", help="print one JSON object with every name")
    options = parser.parse_args()
    found = static()
    if options.run:
        from walks import run_walks

        found |= run_walks()
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:56} {len(value) if isinstance(value, list) else value}")


if __name__ == "__main__":
    main()
