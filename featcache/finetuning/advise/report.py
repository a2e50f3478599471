"""The advice in words and as a figure: each number in them was measured, with its interval."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.outputs import FIGURE, check_output
from featcache.core.progress import counted, duration
from featcache.finetuning.advise.choose import ALL_BLOCKS, FROM, SCRATCH, Choice, Compared, Outcome, kind_of
from featcache.finetuning.advise.measure import MARGIN
from featcache.metrics.plots import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDS = 5
TOO_LITTLE_TIME = "not looked for, as the budget is too small"
"""Why near-duplicates are not known."""
_WORDS = {
    "softmax": "the linear probe", ALL_BLOCKS: "the stack on all blocks", "mlp": "the MLP on frozen features",
    "knn": "nearest neighbors on frozen features", FROM: "partial fine-tuning from {}",
    "finetune": "full fine-tuning", SCRATCH: "training from scratch",
}  # fmt: skip


@dataclass(frozen=True)
class Advice:
    """What `advise` found. Accuracies are shares of 1; intervals are of 95 % unless they say otherwise.

    Attributes:
        store, backbone, classes: path of the store, whose vectors they are, and the labels.
        items, units, held_out: training items, independent ones among them, and items of the hold-out, left alone.
        folds, views: of the cross-validation, and those of ``pooled`` that heads learned from.
        rare_classes, near_duplicates: classes with fewer independent items than folds; pairs that count as one item.
        seed, budget, floor, seconds: of all that was drawn; seconds allowed; those until the vectors were read and one
            linear probe was fitted, which every advice takes; seconds spent.
        learning_curve, more_data: the softmax from few training items to all, and all compared with half of them.
        depth: accuracy of each block, see `featcache.finetuning.advise.measure.depth_report`.
        spaces: those that were compared first, see `featcache.training.spaces.SpaceScore`.
        strategies, comparisons: see `Outcome` and `Compared` in `featcache.finetuning.advise.choose`.
        costs, parts: of every strategy, tried or not; and what was measured, or the reason why it was not.
        recommendation, runner_up, reasons, command: names of strategies, sentences, and what to run next.
    """

    store: str
    backbone: str
    classes: list[str]
    items: int
    units: int
    held_out: int
    folds: int
    views: list[str]
    rare_classes: dict[str, int]
    near_duplicates: dict[str, Any]
    seed: int
    budget: float
    floor: float
    seconds: float
    learning_curve: list[dict[str, Any]]
    more_data: dict[str, Any] | None
    depth: dict[str, Any] | None
    spaces: list[dict[str, Any]]
    strategies: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    costs: list[dict[str, Any]]
    parts: list[dict[str, Any]]
    recommendation: str
    runner_up: str | None
    reasons: list[str]
    command: str

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def called(name: str) -> str:
    """A strategy in words."""
    return _WORDS[kind_of(name)].format(name.removeprefix(FROM).strip())


def points(found: Compared) -> str:
    """``+2.1 points (95 % interval +0.4 to +3.8, sign test p = 0.02) on 900 items``."""
    return (
        f"{100 * found.difference:+.1f} points ({100 * found.confidence:.3g} % interval {100 * found.low:+.1f} to "
        f"{100 * found.high:+.1f}, sign test p = {found.p:.2g}) on {found.items:,} items"
    )


def reasons(
    choice: Choice, outcomes: Mapping[str, Outcome], more_data: Compared | None,
    depth: Mapping[str, Any] | None, late: Compared | None,
) -> list[str]:  # fmt: skip
    """Why this is recommended, and what is not known; *more_data* compares all items with half of them."""
    said = [_decision(choice, outcomes)]
    if choice.comparisons:
        most = max(choice.comparisons, key=lambda found: (found.items, found.high - found.low))
        seen = f"only differences of about {100 * (most.detectable or 0):.1f} points or more can be told from chance"
        if most.low == most.high == 0:
            seen = "all strategies gave equally good answers"
        elif most.detectable is None:
            seen = "no difference at all could be told from chance"
        few = f"little is known from {most.units} independent items; more labeled images would tell more: "
        said.append(f"{few if most.units < 100 else ''}on {most.items:,} items {seen}.")
    for found in choice.worse:
        if found != choice.over:
            short = outcomes[found.b].shortened
            was = " is" if short is None else f": its trial of {short} epochs was"
            said.append(f"{called(found.b)}{was} less accurate than {called(found.a)}: {points(found.reversed())}.")
    if choice.second is not None:
        chance = "; that may be chance" if choice.second.better is None else ""
        said.append(f"the runner-up is {called(choice.second.a)}: {points(choice.second)}{chance}.")
    said += [f"{called(name)}: {outcome.note}." for name, outcome in outcomes.items() if outcome.note]
    if more_data is not None:
        more = "twice the training images helped, so more may help again"
        if more_data.better != more_data.a:
            more = "whether more training images would help is not known, as twice as many make no clear difference"
        said.append(f"{more}: {points(more_data)}.")
    if depth is not None:
        share = f"{100 * depth['similarity_at_least']:.0f} %"
        if (unknown := depth["similarity_unknown"]) is not None:
            said.append(f"the frozen network improves up to {share} of its depth at least; beyond, {unknown}.")
        elif depth["similarity_at_least"] < 1:
            said.append(f"after {share} of its depth the frozen network improves by {100 * MARGIN:.0f} points at most.")
        else:
            said.append("the last layer of the frozen network is better than each block before it beyond chance.")
    if late is not None and late.better == late.a:
        said.append(f"its last layer beats its middle, as on images like its training data: {points(late)}.")
    elif late is not None and late.better is not None:
        middle = points(late.reversed())
        said.append(f"its middle beats its last layer, as on images unlike its training data: {middle}.")
    return [text[:1].upper() + text[1:] for text in said]


def _decision(choice: Choice, outcomes: Mapping[str, Outcome]) -> str:
    name, others = called(choice.name), f"none of the {len(outcomes) - 1} others is better beyond chance"
    if len(outcomes) == 1:
        return f"{name}: nothing else was measured, so nothing is known to be better."
    if choice.contradictory:
        return (
            f"{name}, as it costs least to use: others were better on their items, but each of them was worse than "
            "another on other items, so the comparisons contradict each other."
        )
    if choice.over is not None:
        return f"{name}: better than {called(choice.over.b)} by {points(choice.over)}."
    if choice.name == ALL_BLOCKS and "softmax" in outcomes:
        here, there = (outcomes[known].losses.mean() for known in (ALL_BLOCKS, "softmax"))
        return (
            f"{name}: its log-loss is lower ({here:.3g}, on the last layer alone {there:.3g}; that may be chance), it "
            f"costs next to nothing more to use, and {others}."
        )
    return f"{name}: it costs least to use, and {others}."


def about_items(folds: int, views: int, rare: Mapping[str, int], near: Mapping[str, Any]) -> list[str]:
    """What the training items do not allow, and what was found among them."""
    said = [f"Heads on pooled learned from all {views} stored views of each image, as train does."] if views > 1 else []
    if folds < FOLDS:
        said.append(f"{folds} folds instead of {FOLDS}, as most images are of classes with too few for more.")
    if rare:
        few = sorted(rare, key=lambda name: (rare[name], name))
        named = ", ".join(f"{name!r}: {rare[name]}" for name in few[:3]) + (" …" if few[3:] else "")
        said.append(f"Little is known of classes with fewer independent images than the {folds} folds ({named}).")
    if near["pairs"]:
        first, pairs = near["examples"][0], counted(near["pairs"], "pairs")
        named = f"first: {first['a']} and {first['b']}"
        said.append(f"{pairs} of near-duplicates ({named}) among the images: they stay in one fold and count as one.")
    if near["note"] == TOO_LITTLE_TIME:
        said.append(f"Near-duplicates were {near['note']}; any that there are flatter the scores.")
    return said


def command(
    name: str, store: str, given: Mapping[str, object], layers: Sequence[str] = (), *, in_python: bool = False
) -> str:
    """What to run: a command, or a line of Python where only that has the network; *layers* replace all-blocks."""
    given = {option: value for option, value in given.items() if value is not None}
    kind, layer = kind_of(name), name.removeprefix(FROM).strip()
    tuned = kind in (FROM, "finetune", SCRATCH)
    if in_python and tuned:
        given = ({"init": "scratch"} if kind == SCRATCH else {}) | given
        told = [
            f"{key}={value if isinstance(value, (int, list, tuple)) else str(value)!r}" for key, value in given.items()
        ]
        told = [repr(store), *([repr(layer)] if kind == FROM else []), *told, "backbone=backbone"]
        return f"fc.finetune({', '.join(told)}).save('HEAD.fch')"
    command, *how = name.split() if tuned else ["train", "--head", name.partition(" ")[0]]
    words = ["featcache", command, store, "-o", "HEAD.fch", *how, *(["--yes"] if kind == FROM else [])]
    for key, value in given.items():
        for one in value if isinstance(value, (list, tuple)) else (value,):
            words += [f"--{key.replace('_', '-')}", str(one)]
    if kind == ALL_BLOCKS:
        words += ["--views", "first", "--layers", *layers] if layers else ["--layers", "all-blocks"]
    elif not tuned:
        words += ["--layers", "pooled"]  # what was measured, whatever else is stored
    return shlex.join(words)


def draw_advice(advice: Advice, path: str | Path, *, force: bool = False) -> None:
    """Write learning curve, accuracy by depth, and all strategies with their cost as a PNG.

    Args:
        advice: what was found; what was not measured stays an empty panel that says so.
        path: the file, ``*.png``; a figure of featcache that is there is replaced.
        force: replace any other file too.

    Raises:
        UsageError: the file cannot be written, or there is another one.
    """
    check_output(path, FIGURE, force=force)
    from matplotlib.figure import Figure

    rows, curve, layers = len(advice.costs), advice.learning_curve, (advice.depth or {"layers": []})["layers"]
    figure = Figure(figsize=(9, 4.2 + 0.42 * rows), dpi=110, layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(3.4, 0.8 + 0.42 * rows))
    axes = figure.add_subplot(grid[0, 0], title="Linear probe: images", xlabel="training images", ylabel="accuracy, %")
    learned = [point["learned"] for point in curve] if len(curve) > 1 else []
    if _intervals(axes, learned, curve, "C0"):
        axes.set_xscale("log", base=2)
        axes.set_xticks(learned, [f"{value:.0f}" for value in learned])
        axes.minorticks_off()
    axes = figure.add_subplot(grid[0, 1], title="Linear probe: depth", xlabel="relative depth (1: pooled)")
    if _intervals(axes, [layer["depth"] for layer in layers], layers, "C2") and advice.depth is not None:
        label = f"later layers {'may help more' if advice.depth['similarity'] is None else 'help no more'}"
        axes.axvline(advice.depth["similarity_at_least"], color="0.5", linewidth=0.9, linestyle="--", label=label)
        axes.set_xlim(0, 1.05)
        axes.legend(fontsize=8, loc="lower right")
    axes = figure.add_subplot(grid[1, :], xlabel="accuracy, % (comparable on equal items only; see the comparisons)")
    axes.set_title("Strategies: accuracy with 95 % interval; time of the whole training here", fontsize=10)
    known, names = {outcome["name"]: outcome for outcome in advice.strategies}, list[str]()
    for place, cost in enumerate(advice.costs):
        name, chosen, outcome = cost["strategy"], cost["strategy"] == advice.recommendation, known.get(cost["strategy"])
        names.append(f"{name} (recommended)" if chosen else name)
        told = "time not known" if cost["seconds"] is None else f"about {duration(cost['seconds'])}"
        told += f", {cost['bytes'] / 1e6:,.0f} MB" if cost["bytes"] else ""
        told += "; not tried" if outcome is None else f"; {outcome['items']:,} items"
        axes.text(1.01, place, told, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        if outcome is not None:
            _intervals(axes, [place], [outcome], "C3" if chosen else "C0", across=True)
    axes.set_yticks(range(rows), names, fontsize=9, parse_math=False)
    axes.set_ylim(rows - 0.5, -0.5)
    save_figure(figure, path, force=force)


def _intervals(
    axes: Axes, at: Sequence[float], found: Sequence[Mapping[str, Any]], color: str, *, across: bool = False
) -> bool:
    """Accuracies in percent with their intervals, upright or across; False where there are none."""
    if not at:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="0.5")
        axes.set(xticks=[], yticks=[])
        return False
    value, low, high = 100 * np.array([[one["accuracy"][end] for end in ("value", "low", "high")] for one in found]).T
    spread = [value - low, high - value]
    x, y, xerr, yerr = (value, at, spread, None) if across else (at, value, None, spread)
    axes.errorbar(x, y, xerr=xerr, yerr=yerr, marker="o", markersize=4, capsize=3, color=color)
    axes.grid(alpha=0.3)
    return True
