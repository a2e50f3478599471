"""Whether a network's Python code looks at values on its way: a graph has one way, whatever the picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_TELLING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""torch's own marks of operations whose answer is a Python value (``item``, ``equal``) or whose output's shape tells of
values (``nonzero``, ``unique``, ``masked_select``)."""

_HANDING_OUT = {
    torch.Tensor.__array__, torch.Tensor.__dlpack__, torch.Tensor.data_ptr, torch.Tensor.numpy, torch.Tensor.tolist,
    torch.Tensor.untyped_storage,
}  # fmt: skip
"""These hand out memory, which no operation shows."""


def looks_at_values(run: Callable[[], Any]) -> bool:
    """Whether *run* looks at values of tensors, or at shapes that depend on values.

    It has to be run in eager torch: in a trace shapes are tensors too. A look at a constant counts as well. What own C
    code reads from a tensor's memory is not seen.

    Args:
        run: a forward pass; it is called once.
    """

    class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives it no types
        looked = False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.looked |= bool(_TELLING.intersection(func.tags)) and not _by_numbers(func, args)
            return func(*args, **(kwargs or {}))

    class Functions(TorchFunctionMode):
        looked = False

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.looked |= func in _HANDING_OUT
            return func(*args, **(kwargs or {}))

    with Operations() as operations, Functions() as functions:  # type: ignore[no-untyped-call]  # as above
        run()
    return bool(operations.looked or functions.looked)


def _by_numbers(func: Any, args: Any) -> bool:
    """Whether this is the indexing by whole numbers, of which the output has the shape of the numbers; by a mask it
    has as many rows as the mask has ones."""
    if func is not torch.ops.aten.index.Tensor:
        return False
    return all(index is None or index.dtype not in (torch.bool, torch.uint8) for index in args[1])
