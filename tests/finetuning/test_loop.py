"""The training loop against scikit-learn's optimum, AdamW by hand, and trainings that go wrong."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor, nn

from featcache.core.errors import TrainingError, UsageError
from featcache.finetuning.config import Schedule
from featcache.finetuning.loop import train
from featcache.heads.training_loop import warmup_cosine
from tests.finetuning.problems import Heard, Rows, bits, clouds, perceptron, stages, whole


class Watched:
    """Validation that keeps the network's weights of each epoch, and can change its items."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = model, x, y
        self.seen: list[dict[str, bytes]] = []

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.seen.append(bits(self.model))
        yield from zip(self.x.split(50), self.of_epoch(len(self.seen)).split(50), strict=True)

    def of_epoch(self, epoch: int) -> Tensor:
        return self.y


def test_it_reaches_the_optimum_of_logistic_regression() -> None:
    x, y = clouds(300, 4, 3)
    model = nn.Sequential(nn.Linear(4, 3)).double()
    config = Schedule(epochs=400, lr=0.1, weight_decay=0, patience=400, batch_size=300)
    curve = train(model, stages(model), Rows(x, y, 300), whole(x, y), config)
    exact = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x.numpy(), y.numpy())
    probabilities = exact.predict_proba(x.numpy())
    assert curve.best.validation_loss == pytest.approx(log_loss(y.numpy(), probabilities), abs=1e-7)
    assert curve.best.accuracy == exact.score(x.numpy(), y.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(model(x).softmax(1).numpy(), probabilities, atol=1e-3)


def test_each_step_is_that_of_adamw_with_the_rate_of_the_stage() -> None:
    x, y = clouds(60, 5, 3)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    plain = copy.deepcopy(model)
    config = Schedule(epochs=1, lr=0.03, weight_decay=0.4, warmup_fraction=0.5, layer_decay=0.6, batch_size=15)
    train(model, stages(model), Rows(x, y, 15), whole(x, y), config)
    # Each parameter with an AdamW of its own.
    optimizers = [
        torch.optim.AdamW([p], weight_decay=0.4 if name.endswith("weight") and name != "1.weight" else 0.0)
        for name, p in plain.named_parameters()
    ]
    shares = [{"0": 0.36, "1": 0.6, "3": 1.0}[name.split(".")[0]] for name, _ in plain.named_parameters()]
    plain.train()
    for rate, (xs, ys) in zip([0.015, 0.03, 0.03, 0.015], Rows(x, y, 15)(1), strict=True):
        plain.zero_grad()
        nn.functional.cross_entropy(plain(xs), ys).backward()
        length = float(sum((p.grad**2).sum() for p in plain.parameters())) ** 0.5
        for optimizer, share in zip(optimizers, shares, strict=True):
            optimizer.param_groups[0]["lr"] = rate * share
            for p in optimizer.param_groups[0]["params"]:
                p.grad /= max(1, length)
            optimizer.step()
    for (name, trained), expected in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        np.testing.assert_allclose(trained.numpy(), expected.numpy(), rtol=1e-5, atol=1e-8, err_msg=name)


def test_the_first_step_by_its_formula() -> None:
    x, y = clouds(20, 3, 2)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    before = copy.deepcopy(model)
    config = Schedule(epochs=1, lr=0.01, weight_decay=0.3, warmup_fraction=0, layer_decay=0.25, batch_size=20)
    train(model, stages(model), Rows(x, y, 20), whole(x, y), config)
    nn.functional.cross_entropy(before(x), y).backward()
    assert sum(float((p.grad**2).sum()) for p in before.parameters()) < 1  # so none is shortened
    rates = {"0.weight": 0.0025, "0.bias": 0.0025, "2.weight": 0.01, "2.bias": 0.01}
    for name, p in before.named_parameters():
        decayed = p * (1 - rates[name] * 0.3) if name.endswith("weight") else p
        # Both moments of the first step, freed of their bias, are the gradient and its square.
        expected = decayed - rates[name] * p.grad / (p.grad.abs() + 1e-8)
        got = model.get_parameter(name).detach().numpy()
        np.testing.assert_allclose(got, expected.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_the_training_loss_is_that_of_smoothed_labels_and_the_validation_loss_is_not() -> None:
    x, y = clouds(30, 3, 4)
    model = nn.Sequential(nn.Linear(3, 4)).double()
    with torch.no_grad():
        log_p = model(x).log_softmax(1)
    curve = train(
        model, stages(model), Rows(x, y, 30), whole(x, y), Schedule(epochs=1, label_smoothing=0.2, batch_size=30)
    )
    of_class = -log_p[torch.arange(30), y].mean()
    assert curve.best.training_loss == pytest.approx(float(0.8 * of_class - 0.2 * log_p.mean()), rel=1e-12)
    with torch.no_grad():
        after = nn.functional.cross_entropy(model(x), y)
    assert curve.best.validation_loss == pytest.approx(float(after), rel=1e-12)


def test_patience_ends_it_and_the_best_weights_stay() -> None:
    x, y = clouds(200, 4, 3)
    model = perceptron(4, 3).double()

    class Turning(Watched):
        def of_epoch(self, epoch: int) -> Tensor:
            """From the fifth epoch on the answers are other ones, so what is learned makes it worse."""
            return self.y if epoch < 5 else (self.y + 1) % 3

    validation = Turning(model, x, y)
    config = Schedule(epochs=30, lr=0.01, patience=3, warmup_fraction=0)
    curve = train(model, stages(model), Rows(x, y, 32), validation, config)
    losses = [epoch.validation_loss for epoch in curve.epochs]
    assert losses[:4] == sorted(losses[:4], reverse=True)
    assert min(losses[4:]) > losses[3]
    assert (curve.best.number, len(curve.epochs), curve.ended) == (4, 7, "patience")
    assert bits(model) == validation.seen[3] != validation.seen[6]
    assert not model.training


def test_without_an_early_end_all_epochs_are_done_and_the_curve_is_plain_values() -> None:
    x, y = clouds(90, 4, 3)
    model = perceptron(4, 3).double()
    curve = train(model, stages(model), Rows(x, y, 32), whole(x, y), Schedule(epochs=3, lr=0.01))
    assert [epoch.number for epoch in curve.epochs] == [1, 2, 3]
    assert curve.ended == "epochs"
    assert curve.epochs[-1].lr == 0.01 * warmup_cosine(8, 9, 0.1)
    plain = curve.to_dict()
    assert plain["best_epoch"] == curve.best.number
    assert plain["epochs"][1]["accuracy"] == curve.epochs[1].accuracy


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    x, y = clouds(200, 4, 3)

    def once(seed: int) -> tuple[dict[str, bytes], list[tuple[float, float]]]:
        model = perceptron(4, 3).double()
        torch.rand(seed + 1)  # torch's own random numbers play no part
        curve = train(
            model,
            stages(model),
            Rows(x, y, 32),
            whole(x, y),
            Schedule(epochs=3, seed=seed, patience=9, lr=0.01),
        )
        return bits(model), [(epoch.training_loss, epoch.validation_loss) for epoch in curve.epochs]

    assert once(0) == once(0)
    assert once(0)[0] != once(1)[0]  # the order is the same: it is dropout that differs


def test_torchs_own_random_state_is_left_alone() -> None:
    x, y = clouds(60, 4, 3)
    model = perceptron(4, 3).double()
    before = torch.get_rng_state()
    train(model, stages(model), Rows(x, y, 32), whole(x, y), Schedule(epochs=2))
    assert torch.equal(before, torch.get_rng_state())


def test_what_requires_no_gradient_stays() -> None:
    x, y = clouds(60, 4, 3)
    model = perceptron(4, 3).double()
    model[0].requires_grad_(False)
    before = bits(model)
    train(model, stages(model)[1:], Rows(x, y, 32), whole(x, y), Schedule(epochs=2, patience=9))
    assert {name for name, value in bits(model).items() if value == before[name]} == {"0.weight", "0.bias"}


class Failing(Rows):
    """Inputs of one step are no numbers."""

    at = (0, 0)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step, (x, y) in enumerate(super().__call__(epoch), 1):
            yield (x * torch.nan if (epoch, step) == self.at else x), y


def test_a_loss_that_is_no_number_ends_it_with_the_best_weights_and_a_warning() -> None:
    x, y = clouds(200, 4, 3)
    model = perceptron(4, 3).double()
    validation, heard = Watched(model, x, y), Heard()
    Failing.at = (4, 2)
    config = Schedule(epochs=8, warmup_fraction=0, patience=8)
    curve = train(model, stages(model), Failing(x, y, 50), validation, config, progress=heard)
    assert (len(curve.epochs), curve.ended, curve.best.number) == (3, "non-finite", 3)
    lr = 1e-3 * warmup_cosine(13, 32)
    warning = heard.notes[0]
    assert warning.startswith("Warning: The loss is nan in epoch 4 at step 2, where the learning rate is ")
    assert f"{lr:.3g}." in warning
    assert "has the weights of epoch 3, the best, again. Try a lower learning rate, such as 0.0002" in warning
    assert bits(model) == validation.seen[2]
    assert not model.training


def test_inputs_that_are_no_numbers_from_the_first_step_on() -> None:
    x, y = clouds(60, 4, 3)
    model = perceptron(4, 3).double()
    before = bits(model)
    with pytest.raises(TrainingError, match=r"epoch 1 at step 1.*before the training, again. No step was taken yet"):
        train(model, stages(model), Rows(x * torch.inf, y, 30), whole(x, y), Schedule())
    assert bits(model) == before


@pytest.mark.parametrize("lr", [1e18, 1e35])
def test_a_learning_rate_that_is_far_too_high(lr: float) -> None:
    x, y = clouds(60, 4, 3)
    model = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 9), nn.Linear(9, 3))
    before = bits(model)
    with pytest.raises(TrainingError, match=r"in epoch 1 at step .*Try a lower learning rate"):
        train(
            model,
            stages(model),
            Rows(x.float(), y, 30),
            whole(x.float(), y),
            Schedule(lr=lr, warmup_fraction=0),
        )
    assert bits(model) == before


def test_a_validation_loss_that_is_no_number() -> None:
    x, y = clouds(60, 4, 3)
    model = perceptron(4, 3).double()
    with pytest.raises(TrainingError, match="The validation loss is nan in epoch 1 at step 2"):
        train(model, stages(model), Rows(x, y, 30), whole(x * torch.nan, y), Schedule())


def test_stages_must_hold_each_parameter_once() -> None:
    x, y = clouds(60, 4, 3)
    model = perceptron(4, 3).double()
    rest = (Rows(x, y, 30), whole(x, y), Schedule())
    with pytest.raises(UsageError, match=r"exactly one stage\. In none: 4\.weight, 4\.bias\."):
        train(model, stages(model)[:-1], *rest)
    with pytest.raises(UsageError, match=r"exactly one stage\.$"):
        train(model, [*stages(model), stages(model)[0]], *rest)
    with pytest.raises(UsageError, match=r"exactly one stage\.$"):
        train(model, [*stages(model), ("other", list(nn.Linear(1, 1).parameters()))], *rest)
    with pytest.raises(UsageError, match="nothing to train"):
        train(model.requires_grad_(False), stages(model), *rest)


@pytest.mark.parametrize(("steps", "said"), [(3, "2 batches"), (1, "more batches")])
def test_batches_that_are_not_as_many_as_they_say(steps: int, said: str) -> None:
    class Wrong(Rows):
        @property
        def steps(self) -> int:
            return steps

    x, y = clouds(60, 4, 3)
    model = perceptron(4, 3).double()
    with pytest.raises(UsageError, match=f"Epoch 1 has {said}, but should have {steps}"):
        train(model, stages(model), Wrong(x, y, 30), whole(x, y), Schedule())


def test_nothing_to_validate_on() -> None:
    x, y = clouds(60, 4, 3)
    model = perceptron(4, 3).double()
    with pytest.raises(UsageError, match="no item to validate on"):
        train(model, stages(model), Rows(x, y, 30), list, Schedule())


def test_each_epoch_is_a_phase_that_names_the_last_loss() -> None:
    x, y = clouds(100, 4, 3)
    model = perceptron(4, 3).double()
    heard = Heard()
    curve = train(model, stages(model), Rows(x, y, 30), whole(x, y), Schedule(epochs=3), progress=heard)
    assert [(total, unit) for _, total, unit in heard.phases] == [(4, "steps")] * 3
    assert heard.done == [4, 4, 4]
    second = curve.epochs[1]
    assert heard.phases[2][0] == (
        f"epoch 3 of 3 (loss {second.tempered_loss:.4g}, accuracy {second.accuracy:.3f}; at most 0:00 left)"
    )
    assert heard.notes == [
        f"3 of 3 epochs; the best is epoch 3: validation loss {curve.best.tempered_loss:.4g} "
        f"(at its best temperature), accuracy {curve.best.accuracy:.4f}."
    ]


def test_an_epoch_in_bfloat16_is_that_in_float32_within_its_precision() -> None:
    """On any processor: slow ones are refused before the loop."""
    x, y = clouds(400, 4, 3)
    found = {}
    for precision in ("float32", "bfloat16"):
        model = perceptron(4, 3)
        config = Schedule(epochs=1, precision=precision)
        found[precision] = train(model, stages(model), Rows(x.float(), y, 40), whole(x.float(), y), config).best
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    near, far = found["bfloat16"], found["float32"]
    assert near.training_loss == pytest.approx(far.training_loss, rel=0.01)
    assert near.validation_loss == pytest.approx(far.validation_loss, rel=0.01)
    assert near.training_loss != far.training_loss
