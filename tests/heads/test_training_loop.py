"""The learning rate of each step against its formula, and the loop's steps against torch's own."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from featcache.core.errors import TrainingError, UsageError
from featcache.heads.training_loop import AdamW, NonFiniteError, stalled, train_epochs, warmup_cosine


def test_shares_by_hand() -> None:
    expected = [0.5, 1, 1, (1 + math.sqrt(3) / 2) / 2, 0.75, 0.5, 0.25, (1 - math.sqrt(3) / 2) / 2]
    assert [warmup_cosine(step, 8, 0.25) for step in range(8)] == pytest.approx(expected, rel=1e-14)


def test_after_the_last_step_the_rate_would_be_0() -> None:
    assert warmup_cosine(200, 200, 0.1) == pytest.approx(0, abs=1e-18)


def test_without_warm_up_it_begins_at_the_top() -> None:
    assert warmup_cosine(0, 10) == 1


@given(st.integers(1, 400), st.floats(0, 0.99))
def test_it_rises_evenly_and_then_only_falls(steps: int, warmup: float) -> None:
    shares = np.array([warmup_cosine(step, steps, warmup) for step in range(steps)])
    rising = round(warmup * steps)
    np.testing.assert_allclose(shares[:rising], np.arange(1, rising + 1) / max(rising, 1), rtol=1e-12)
    assert (np.diff(shares[rising:]) < 0).all()
    assert (shares > 0).all()
    assert shares.max() == pytest.approx(1)


class Line:
    """Least squares: y = 3 x, in batches of four."""

    def __init__(self) -> None:
        self.weight = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
        self.x = torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None]

    def batches(self, _: int) -> Iterator[tuple[Tensor, Tensor]]:
        for part in self.x.split(4):
            yield part, 3 * part

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.mse_loss(x @ self.weight.T, y)


@pytest.mark.parametrize("fused", [False, True])
def test_the_steps_are_those_of_torchs_adamw_to_the_last_bit(fused: bool) -> None:
    trained = []
    for make in (AdamW, torch.optim.AdamW):
        layer = torch.nn.Linear(7, 3)
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(-1, 1, 21).reshape(3, 7))
            layer.bias.zero_()
        groups = [{"params": [layer.weight], "weight_decay": 0.1}, {"params": [layer.bias], "weight_decay": 0.0}]
        optimizer = make(groups, lr=0.01, fused=fused)
        for step in range(5):
            optimizer.zero_grad()
            assert layer.weight.grad is None
            layer(torch.full((2, 7), 1.0 + step)).square().sum().backward()
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        trained.append((layer.weight, layer.bias))
    for ours, theirs in zip(*trained, strict=True):
        assert torch.equal(ours, theirs)


def test_without_weight_decay_it_is_adam_under_a_falling_cosine() -> None:
    ours, plain = Line(), Line()
    optimizer = torch.optim.AdamW([ours.weight], lr=0.1, weight_decay=0.0)
    found = [loss for loss, _ in train_epochs(optimizer, ours.batches, ours.loss, epochs=5, steps=3)]
    adam = torch.optim.Adam([plain.weight], lr=0.1)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 15)
    losses = []
    for _ in range(5):
        for x, y in plain.batches(0):
            adam.zero_grad()
            loss = plain.loss(x, y)
            loss.backward()
            adam.step()
            falling.step()
            losses.append(loss.item())
    assert found == pytest.approx(np.reshape(losses, (5, 3)).mean(1), rel=1e-12)
    torch.testing.assert_close(ours.weight, plain.weight, rtol=1e-12, atol=0)


def test_it_resumes_with_a_later_epoch() -> None:
    whole, halves = Line(), Line()
    optimizer = torch.optim.AdamW([whole.weight], lr=0.1)
    rates = [lr for _, lr in train_epochs(optimizer, whole.batches, whole.loss, epochs=4, steps=3)]
    optimizer = torch.optim.AdamW([halves.weight], lr=0.1)
    passes = train_epochs(optimizer, halves.batches, halves.loss, epochs=4, steps=3)
    kept = [next(passes)[1], next(passes)[1]]
    optimizer.param_groups[0]["lr"] = 0.1
    kept += [lr for _, lr in train_epochs(optimizer, halves.batches, halves.loss, epochs=4, steps=3, first=3)]
    assert kept == rates
    assert torch.equal(whole.weight, halves.weight)


def test_a_loss_that_is_not_finite_is_told_with_its_place() -> None:
    line = Line()
    optimizer = torch.optim.AdamW([line.weight], lr=0.1)
    line.x[5] = torch.nan
    where = r"The loss is nan in epoch 1 at step 2, where the learning rate is 0\.09"
    with pytest.raises(NonFiniteError, match=where) as caught:
        next(train_epochs(optimizer, line.batches, line.loss, epochs=2, steps=3))
    assert isinstance(caught.value, TrainingError)
    assert (caught.value.epoch, caught.value.step) == (1, 2)


@pytest.mark.parametrize(("steps", "said"), [(4, "3 batches"), (2, "more batches")])
def test_batches_that_are_not_as_many_as_announced(steps: int, said: str) -> None:
    line = Line()
    optimizer = torch.optim.AdamW([line.weight], lr=0.1)
    with pytest.raises(UsageError, match=f"Epoch 1 has {said}, but should have {steps}"):
        next(train_epochs(optimizer, line.batches, line.loss, epochs=2, steps=steps))


def test_a_loss_that_creeps_or_turns_has_stalled_and_one_that_falls_has_not() -> None:
    falling = [0.9**epoch for epoch in range(30)]
    assert stalled([0.5**epoch for epoch in range(30)], 9)  # what is left to gain is nothing
    assert not stalled(falling, 1)
    assert not stalled([*falling, 1.0, 1.0], 3)
    assert stalled([*falling, 1.0, 1.0, 1.0], 3)
    creeping = [1 - 1e-4 * epoch for epoch in range(30)]
    assert stalled(creeping[:5], 4)
    assert not stalled(creeping[:12], 4)  # the eleventh is more than a thousandth below the first
    assert stalled([1.0, np.nan, np.nan], 2)
    assert not stalled([np.nan, np.nan, 1.0], 2)
    assert not stalled([], 1)
