"""The advice in sentences: each number in them is one that was measured, with its interval."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from featcache.finetuning.advise.depth import MARGIN, Depth
from featcache.finetuning.advise.learning_items import FOLDS, LearningItems
from featcache.finetuning.advise.outcome import Compared, Outcome
from featcache.finetuning.advise.rule import Choice

FEW = 100
"""With fewer independent items the words begin with how little is known."""

_NAMED = 3
_INITS = {"finetune": "pretrained", "scratch": "scratch"}

_IN_WORDS = {
    "softmax": "the softmax on the frozen network's vectors",
    "multilayer": "the softmax on all blocks together",
    "mlp": "hidden layers on the frozen network's vectors",
    "tune": "tuning the network from {} on",
    "finetune": "fine-tuning the whole network",
    "scratch": "the whole network from random weights",
    "knn": "the nearest neighbours",
}


def called(name: str) -> str:
    """A strategy in words."""
    kind, _, layer = name.partition(" ")
    return _IN_WORDS[kind].format(layer)


def reasons(
    choice: Choice,
    measured: Sequence[str],
    compared: Sequence[Compared],
    more_data: Compared | None,
    depth: Depth | None,
    outcomes: Mapping[str, Outcome],
) -> list[str]:
    """Why this is recommended, and what is not known.

    Args:
        choice: what is recommended.
        measured: names of all strategies that were measured, from cheap to dear.
        compared: all comparisons that were made.
        more_data: all items compared with half of them.
        depth: probes by depth.
        outcomes: of the strategies, by name.
    """
    said = [_decision(choice, measured, outcomes)]
    said += _little(compared)
    said += [_worse(found, outcomes.get(found.b)) for found in choice.worse if found != choice.over]
    if choice.second is not None and choice.runner_up is not None:
        known = choice.second.better is not None
        told = "" if known else "; that may be chance"
        said.append(f"The runner-up is {called(choice.runner_up)}: {points(choice.second)}{told}.")
    said += [f"{_begin(called(name))}: {outcome.note}." for name, outcome in outcomes.items() if outcome.note]
    if more_data is not None:
        said.append(_data(more_data))
    if depth is not None:
        said += _depth(depth)
    return said


def of_items(items: LearningItems) -> list[str]:
    """What the items do not allow, and what was found among them."""
    k, said = len(items.folds), list[str]()
    rare = sorted(items.rare, key=lambda name: (items.rare[name], name))
    views = len(items.dataset.views)
    if views > 1:
        said.append(f"Heads on pooled learned from all {views} stored views of each image, as train does.")
    if k < FOLDS:
        said.append(f"{k} folds instead of {FOLDS}, as most images are of classes with too few for more.")
    if rare:
        named = ", ".join(f"{name!r}: {items.rare[name]}" for name in rare[:_NAMED]) + (" …" if rare[_NAMED:] else "")
        said.append(
            f"{len(rare)} class{'es have' if rare[1:] else ' has'} fewer independent images than the {k} folds "
            f"({named}), so of {'these' if rare[1:] else 'this one'} little is known."
        )
    near = items.near_duplicates
    if near["pairs"]:
        first = near["examples"][0]
        said.append(
            f"{near['pairs']:,} pair{'s' if near['pairs'] > 1 else ''} of near-duplicates (first: {first['a']} and "
            f"{first['b']}) among the images: they stay in one fold and count as one."
        )
    return said


def points(found: Compared) -> str:
    """A difference of accuracies in words: ``+2.1 points (95 % interval +0.4 to +3.8, sign test 0.02) on 9 items``."""
    return (
        f"{100 * found.difference:+.1f} points ({100 * found.confidence:.3g} % interval {100 * found.low:+.1f} to "
        f"{100 * found.high:+.1f}, sign test {found.p:.2g}) on {found.items:,} items"
    )


def command(
    name: str,
    store: str,
    given: Mapping[str, object],
    layers: Sequence[str] = (),
    *,
    several_views: bool = False,
    in_python: bool = False,
) -> str:
    """The command that does what is recommended.

    Args:
        name: of the strategy.
        store: its path.
        given: arguments that were given and have to be given again; those that are None are left out.
        layers: of the strategy ``multilayer`` where these are not all blocks, else none.
        several_views: whether there are several of any of these layers, of which view 0 alone was learned from.
        in_python: whether the network was made in Python, so that no command can have it: a strategy that needs it is
            then a line of Python, in which it is called ``backbone``.
    """
    if in_python and name not in ("softmax", "mlp", "knn"):
        return _line_of_python(name, store, given)
    kind, _, layer = name.partition(" ")
    words: list[object] = ["featcache"]
    if kind == "tune":
        words += ["finetune", store, "-o", "HEAD.fch", "--from", layer, "--yes"]
    elif kind in ("finetune", "scratch"):
        words += ["finetune", store, "-o", "HEAD.fch", "--init", _INITS[kind]]
    elif kind == "multilayer" and not layers:
        words += ["train", store, "-o", "HEAD.fch", "--layers", "all-blocks"]
    else:
        words += ["train", store, "-o", "HEAD.fch", "--head", "softmax" if kind == "multilayer" else kind]
    words += [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
    if kind == "multilayer" and layers:
        words += [*(["--views", "first"] if several_views else []), "--layers", *layers]
    return shlex.join(str(word) for word in words)


def _line_of_python(name: str, store: str, given: Mapping[str, object]) -> str:
    kind, _, layer = name.partition(" ")
    arguments = [repr(store)]
    if kind == "tune":
        arguments.append(repr(layer))
    elif kind == "multilayer":
        arguments.append("layers=featcache.training.all_blocks.block_layers(backbone)")
    elif kind in _INITS:
        arguments.append(f"init={_INITS[kind]!r}")
    arguments += [
        f"{name}={value if isinstance(value, int) else str(value)!r}"
        for name, value in given.items()
        if value is not None
    ]
    if kind == "multilayer":
        return f"fc.train({', '.join(arguments)}).save('HEAD.fch')"
    return f"fc.finetune({', '.join(arguments)}, backbone=backbone).save('HEAD.fch')"


def _decision(choice: Choice, measured: Sequence[str], outcomes: Mapping[str, Outcome]) -> str:
    name = called(choice.name)
    if len(measured) == 1:
        return f"{_begin(name)}: nothing else was measured, so nothing is known to be better."
    if choice.contradictory:
        return (
            f"{_begin(name)}, as it costs least to use: others were better on their items, but each of them was worse "
            "than another on other items, so the comparisons contradict each other."
        )
    if choice.over is None:
        others = f"none of the {len(measured) - 1} others is better beyond chance"
        if choice.name == "multilayer" and "softmax" in outcomes:
            here, there = (outcomes[known].losses.mean() for known in ("multilayer", "softmax"))
            why = f"its log-loss is the lower one ({here:.3g}, on the last layer alone {there:.3g}; that may be chance)"
            return f"{_begin(name)}: {why}, it costs next to nothing more to use, and {others}."
        return f"{_begin(name)}: it costs least to use, and {others}."
    return f"{_begin(name)}: better than {called(choice.over.b)} by {points(choice.over)}."


def _worse(found: Compared, outcome: Outcome | None) -> str:
    # A training that was cut short says nothing of the whole one.
    short = None if outcome is None else outcome.shortened
    was = " is" if short is None else f": its trial of {short} epochs was"
    return f"{_begin(called(found.b))}{was} less accurate than {called(found.a)}: {points(found.reversed())}."


def _little(compared: Sequence[Compared]) -> list[str]:
    if not compared:
        return []
    most = max(compared, key=lambda found: (found.items, found.high - found.low))
    if most.low == most.high == 0:
        seen = f"on {most.items:,} items all strategies gave equally good answers"
    elif most.detectable is None:
        seen = f"on {most.items:,} items no difference at all could be told from chance"
    else:
        seen = (
            f"on {most.items:,} items a difference has to be about {100 * most.detectable:.1f} points or more to be "
            "told from chance by its interval and by the sign test"
        )
    if most.units < FEW:
        return [f"Little is known from {most.units} independent items: {seen}. More labelled images would tell more."]
    return [f"{_begin(seen)}."]


def _data(found: Compared) -> str:
    if found.better == found.a:
        return f"Twice the images helped ({points(found)}), so still more may help again."
    return f"Whether twice the images help is not known: {points(found)}."


def _depth(depth: Depth) -> list[str]:
    share = f"{100 * depth.at_least:.0f} %"
    if depth.unknown is not None:
        said = [
            f"How early the frozen network stops to help is not known, only that it is between {share} and 100 % of "
            f"its depth: {depth.unknown}."
        ]
    elif depth.at_least < 1:
        said = [
            f"After {share} of its depth the frozen network helps no more: no later layer is better by more than "
            f"{100 * MARGIN:.0f} points."
        ]
    else:
        said = ["The last layer of the frozen network is better than each block before it beyond chance."]
    late = depth.late_gain
    if late is not None and late.better == late.a:
        said.append(f"Its last layer is ahead of its middle ({points(late)}), as on images like those it learned from.")
    elif late is not None and late.better == late.b:
        said.append(
            f"Its middle is ahead of its last layer ({points(late.reversed())}): these images are unlike those that it "
            "learned from."
        )
    return said


def _begin(text: str) -> str:
    return text[:1].upper() + text[1:]
