"""The output layer that a training begins with: the softmax that the path solver finds on the frozen vectors.

A random output would at first send random gradients into pretrained weights and undo what they know (Kumar et al.,
"Fine-tuning can distort pretrained features and underperform out-of-distribution", ICLR 2022: probing first, then
fine-tuning).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from featcache.heads import make_head
from featcache.heads.forms import form_of
from featcache.heads.linear import LinearForm


def probed(X: np.ndarray, y: np.ndarray, units: np.ndarray, seed: int) -> tuple[nn.Linear, dict[str, object]]:
    """A linear layer from vectors to the classes in sorted order, and what was chosen for it.

    Args:
        X: (n, d) float32 vectors.
        y: (n,) labels.
        units: (n,) numbers; rows of one unit stay in one fold.
        seed: of the folds.
    """
    head = make_head("softmax", seed, "classify").fit(X, y, groups=units)
    form = form_of(head)
    assert isinstance(form, LinearForm)
    output = nn.Linear(X.shape[1], len(form.classes))
    with torch.no_grad():
        output.weight.copy_(torch.from_numpy(form.weight))
        output.bias.copy_(torch.from_numpy(form.bias))
    return output, dict(head.chosen_)


def linear_form(output: nn.Linear, classes: tuple[str, ...]) -> LinearForm:
    """The same as a form that answers from vectors."""
    weight, bias = (tensor.detach().cpu().numpy().copy() for tensor in (output.weight, output.bias))
    return LinearForm(weight, bias, classes, "softmax")
