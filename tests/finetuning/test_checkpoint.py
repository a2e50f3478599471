"""A training that is killed goes on to the same bits; checkpoints of others and damaged ones are refused."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from featcache.core import failpoints
from featcache.core.errors import TrainingError, UsageError
from featcache.finetuning import checkpoint
from featcache.finetuning.config import Schedule
from featcache.finetuning.loop import train
from tests.finetuning import child
from tests.finetuning.problems import Rows, bits, clouds, perceptron, stages, whole

if TYPE_CHECKING:
    from featcache.finetuning.history import Curve

POINTS = [point for point in failpoints.POINTS if point.startswith("checkpoint")]
CONFIG = Schedule(epochs=4, lr=0.01, patience=9)


def answer(folder: Path) -> tuple[dict[str, Any], bytes]:
    return json.loads((folder / "curve.json").read_text()), (folder / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], bytes]:
    """Curve and weights of the training that nothing interrupts."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert child.run(folder / "c.ckpt", folder) == 0
    told, weights = answer(folder)
    assert len(told["epochs"]) == child.EPOCHS
    assert told["best_epoch"] == 3
    return told, weights


@pytest.mark.parametrize(
    "kills",
    [
        [("step", 1, 1)],
        [("step", 1, 4)],
        [("step", 2, 1)],
        [("step", 4, 3)],
        [("validation", 3)],
        *[[("reach", point, passes)] for point in POINTS for passes in (1, 3, child.EPOCHS)],
        [("step", 3, 2), ("validation", 3), ("reach", "checkpoint: file written", 2), ("step", 6, 5)],
    ],
    ids=lambda kills: "; ".join(" ".join(map(str, kill)) for kill in kills),
)
def test_killed_and_started_again(
    unbroken: tuple[dict[str, Any], bytes], tmp_path: Path, kills: list[tuple[Any, ...]]
) -> None:
    path = tmp_path / "c.ckpt"
    for kill in kills:
        assert child.run(path, tmp_path, kill) == -signal.SIGKILL
        assert not (tmp_path / "curve.json").exists()
    assert child.run(path, tmp_path) == 0
    assert answer(tmp_path) == unbroken
    # Nor does what a killed process had written aside stay.
    assert {file.name for file in tmp_path.iterdir()} == {"curve.json", "weights.safetensors"}


@pytest.fixture
def training(tmp_path: Path) -> Callable[..., tuple[Curve, nn.Sequential]]:
    x, y = clouds(120, 4, 3)

    def run(
        config: Schedule = CONFIG,
        width: int = 4,
        batch_size: int = 32,
        before: Callable[[int, int], None] = lambda epoch, step: None,
        **task: Any,
    ) -> tuple[Curve, nn.Sequential]:
        model = perceptron(width, 3).double()
        batches = Rows(x[:, :width], y, batch_size, before=before)
        validation = whole(x[:, :width], y)
        path = tmp_path / "c.ckpt"
        return train(model, stages(model), batches, validation, config, checkpoint=path, task=task), model

    return run


def interrupted(training: Callable[..., Any], epoch: int = 3, **wishes: Any) -> None:
    def stop(now: int, step: int) -> None:
        if (now, step) == (epoch, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training(before=stop, **wishes)


def test_after_ctrl_c_it_goes_on_with_the_next_epoch(training: Callable[..., Any], tmp_path: Path) -> None:
    interrupted(training)
    assert [file.name for file in tmp_path.iterdir()] == ["c.ckpt"]
    asked = []
    curve, model = training(before=lambda epoch, step: asked.append(epoch))
    assert sorted(set(asked)) == [3, 4]
    (tmp_path / "c.ckpt").unlink()
    plain_curve, plain = training()
    assert bits(model) == bits(plain)
    assert [replace(epoch, seconds=0) for epoch in curve.epochs] == [
        replace(epoch, seconds=0) for epoch in plain_curve.epochs
    ]


@pytest.mark.parametrize("patience", [9, 1])
def test_what_is_done_is_done(training: Callable[..., Any], patience: int) -> None:
    """A checkpoint that was not removed gives the network at once."""
    # With a learning rate of 100 the second epoch is worse than the first.
    config = replace(CONFIG, lr=100.0 if patience == 1 else 0.01, patience=patience)
    curve, model = training(config)
    asked: list[int] = []
    again, same = training(config, before=lambda epoch, step: asked.append(epoch))
    assert asked == []
    assert again == curve
    assert bits(same) == bits(model)
    assert curve.ended == ("patience" if patience == 1 else "epochs")


def test_of_another_training_it_is_refused_with_what_differs(training: Callable[..., Any], tmp_path: Path) -> None:
    interrupted(training, layer="blocks.4", items={"train": 120})
    kept = (tmp_path / "c.ckpt").read_bytes()
    with pytest.raises(UsageError) as caught:
        training(replace(CONFIG, lr=0.02), layer="blocks.5", items={"train": 121})
    told = str(caught.value)
    assert 'task.layer was "blocks.4" and is now "blocks.5"; task.items.train was 120 and is now 121' in told
    assert "--lr was 0.01 and is now 0.02" in told
    assert told.endswith(f"Remove {tmp_path / 'c.ckpt'} to start over, or give another file.")
    with pytest.raises(UsageError, match="number of steps of an epoch was 4 and is now 5"):
        training(batch_size=24, layer="blocks.4", items={"train": 120})
    with pytest.raises(UsageError, match="the images or their labels are others"):
        training(layer="blocks.4")
    with pytest.raises(UsageError, match="that of another network"):
        training(width=3, layer="blocks.4", items={"train": 120})
    assert (tmp_path / "c.ckpt").read_bytes() == kept


def damages(kept: bytes) -> Iterator[bytes]:
    yield b""
    yield b"\x00" * 64
    yield from (kept[:length] for length in (4, 100, len(kept) // 2, len(kept) - 1))
    for place in (3, 40, len(kept) // 3, len(kept) // 2, len(kept) - 1):
        yield kept[:place] + bytes([kept[place] ^ 4]) + kept[place + 1 :]


def test_a_damaged_one_is_refused(training: Callable[..., Any], tmp_path: Path) -> None:
    interrupted(training)
    path = tmp_path / "c.ckpt"
    for content in damages(path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(TrainingError, match=r"is damaged or no checkpoint of a training: .* Remove .* start over"):
            training()
        assert path.read_bytes() == content


def test_one_of_another_version_is_refused(training: Callable[..., Any], tmp_path: Path) -> None:
    """A whole file whose description tells the version before."""
    interrupted(training)
    path = tmp_path / "c.ckpt"
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    text = metadata[checkpoint._KEY].replace(f'"format": {checkpoint._FORMAT}', f'"format": {checkpoint._FORMAT - 1}')
    assert text != metadata[checkpoint._KEY]
    save_file(tensors, path, metadata={checkpoint._KEY: text, "sha256": checkpoint._digest(text, tensors)})
    with pytest.raises(UsageError, match="written by another version of featcache"):
        training()


def test_a_folder_in_its_place(training: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "c.ckpt").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        training()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    x, y = clouds(60, 4, 3)
    model = perceptron(4, 3).double()
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "c.ckpt"
    with pytest.raises(TrainingError, match=r"c\.ckpt cannot be written: .*give another file"):
        train(model, stages(model), Rows(x, y, 32), whole(x, y), CONFIG, checkpoint=path)


def test_networks_whose_parameters_share_their_memory(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.last = nn.Linear(4, 3)

        def forward(self, x: Any) -> Any:
            return self.last(self.second(self.first(x)))

    x, y = clouds(60, 4, 3)
    ends = []
    for path in (tmp_path / "c.ckpt", tmp_path / "c.ckpt", None):
        model = Tied().double()
        nn.init.eye_(model.first.weight)
        for part in (model.first.bias, model.second.bias, model.last.bias, model.last.weight):
            nn.init.zeros_(part)
        train(model, [("all", list(model.parameters()))], Rows(x, y, 32), whole(x, y), CONFIG, checkpoint=path)
        ends.append(bits(model))
    assert ends[0] == ends[1] == ends[2]


def test_nothing_in_it_is_code(training: Callable[..., Any], tmp_path: Path) -> None:
    training(items=("a", "b"))
    with safe_open(tmp_path / "c.ckpt", framework="numpy") as file:
        told = json.loads(file.metadata()["featcache_checkpoint"])
        names = set(file.keys())
    assert told["settings"]["task"] == {"items": ["a", "b"]}
    assert told["settings"]["config"]["lr"] == 0.01
    assert [epoch["number"] for epoch in told["epochs"]] == [1, 2, 3, 4]
    assert {"weights/0.weight", "moments/exp_avg/0.weight", "moments/exp_avg_sq/4.bias"} <= names


def test_removal_takes_only_its_own(tmp_path: Path) -> None:
    for name in ("c[1].ckpt", ".c[1].ckpt.12.partial", ".c1.ckpt.12.partial", "c1.ckpt"):
        (tmp_path / name).write_text("")
    checkpoint.remove(tmp_path / "c[1].ckpt")
    checkpoint.remove(tmp_path / "c[1].ckpt")
    assert {file.name for file in tmp_path.iterdir()} == {".c1.ckpt.12.partial", "c1.ckpt"}
