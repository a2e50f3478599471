"""A training in a process of its own that may be killed; forked from one that has torch already."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from featcache.core import failpoints
from featcache.finetuning import checkpoint
from featcache.finetuning.config import Schedule
from featcache.finetuning.loop import train
from tests.finetuning.problems import Rows, clouds, perceptron, stages
from tests.fork_server import fork_server

# An optimizer imports `torch._dynamo` when it is first used, which takes longer than the training.
_CONTEXT = fork_server("tests.finetuning.child", "torch._dynamo")

EPOCHS = 6


def run(path: Path, answer: Path, kill: tuple[Any, ...] | None = None) -> int:
    """Train with a checkpoint at *path*; its exit code.

    Args:
        path: the checkpoint.
        answer: a folder for the weights and the curve.
        kill: where the process dies: ``("step", epoch, step)``, ``("validation", epoch)`` or
            ``("reach", failpoint, how often)``.
    """
    process = _CONTEXT.Process(target=_train, args=(path, answer, kill))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the training goes on and on"
    return process.exitcode


def _train(path: Path, answer: Path, kill: tuple[Any, ...] | None) -> None:
    torch.set_num_threads(1)
    passed: dict[str, int] = {}

    def come_to(*place: Any) -> None:
        if place == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_reach(point: str) -> None:
        passed[point] = passed.get(point, 0) + 1
        come_to("reach", point, passed[point])

    failpoints.on_reach = on_reach
    x, y = clouds(240, 5, 3, spread=0.5)
    x = x.float()
    model = perceptron(5, 3)
    epoch_now = 0

    def before(epoch: int, step: int) -> None:
        nonlocal epoch_now
        epoch_now = epoch
        come_to("step", epoch, step)

    def validation() -> Any:
        # From the fourth epoch on the answers are other ones, so the third is the best.
        answers = y if epoch_now < 4 else (y + 1) % 3
        yield x[160:200], answers[160:200]
        come_to("validation", epoch_now)
        yield x[200:], answers[200:]

    config = Schedule(epochs=EPOCHS, lr=0.03, patience=EPOCHS, batch_size=32)
    batches = Rows(x[:160], y[:160], 32, before=before)
    curve = train(model, stages(model), batches, validation, config, checkpoint=path, task={"items": "clouds"})
    save_file(model.state_dict(), answer / "weights.safetensors")
    told = curve.to_dict()
    for epoch in told["epochs"]:
        del epoch["seconds"]
    (answer / "curve.json").write_text(json.dumps(told))
    checkpoint.remove(path)
