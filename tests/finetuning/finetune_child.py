"""A whole-network training in a process of its own that may be killed; forked from one that has torch already."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import torch

from featcache.core import failpoints
from featcache.finetuning.config import Schedule
from featcache.finetuning.finetune import finetune
from featcache.heads import resolve_head
from tests.finetuning.stores import colour_blind
from tests.fork_server import fork_server

_CONTEXT = fork_server("tests.finetuning.finetune_child", "torch._dynamo")

resolve_head("softmax").make()  # what is imported here is there in every process that is forked
CONFIG = Schedule(epochs=10, lr=3e-2, batch_size=12, patience=10, layer_decay=1.0)


def run(store: Path, answer: Path, kill_after: int | None = None) -> int:
    """Train with a checkpoint in the folder *answer*, where the bundle goes too; the process's exit code.

    Args:
        store: the store.
        answer: a folder.
        kill_after: the process dies when it has written this many checkpoints.
    """
    process = _CONTEXT.Process(target=_train, args=(store, answer, kill_after))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the training goes on and on"
    return process.exitcode


def _train(store: Path, answer: Path, kill_after: int | None) -> None:
    torch.set_num_threads(1)
    written = 0

    def on_reach(point: str) -> None:
        nonlocal written
        written += point == "checkpoint: renamed"
        if written == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.on_reach = on_reach
    bundle = finetune(store, config=CONFIG, checkpoint=answer / "c.ckpt", backbone=colour_blind(), progress=False)
    curve = bundle.report["curve"]
    for epoch in curve["epochs"]:
        del epoch["seconds"]
    (answer / "curve.json").write_text(json.dumps(curve))
    bundle.save(answer / "a.fch")
