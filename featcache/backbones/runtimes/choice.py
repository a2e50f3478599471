"""Which runtime and precision a backbone runs with, and whether this machine has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featcache.backbones import compute as processor
from featcache.backbones.devices import check_device
from featcache.backbones.runtimes import openvino_library
from featcache.core.errors import UnknownNameError, UsageError
from featcache.core.recipe import PRECISIONS

if TYPE_CHECKING:
    from featcache.backbones.backbone import Backbone
    from featcache.backbones.runtimes.passes import Passes

RUNTIMES = ("auto", "torch", "openvino")


def check_choice(runtime: str, precision: str, device: str) -> None:
    """Refuse what this machine cannot do.

    Args:
        runtime: one of `RUNTIMES`.
        precision: ``float32`` or ``bfloat16``.
        device: torch device, see `featcache.backbones.devices`.

    Raises:
        UnknownNameError: no such runtime, precision or kind of device.
        UsageError: OpenVINO is asked for on another device than the processor, there is no such device, or the
            processor or GPU does not compute in bfloat16.
    """
    if runtime not in RUNTIMES:
        raise UnknownNameError.among("runtime", runtime, RUNTIMES)
    if precision not in PRECISIONS:
        raise UnknownNameError.among("precision", precision, PRECISIONS)
    on_processor = device == "cpu"
    if runtime == "openvino" and not on_processor:
        raise UsageError(f"OpenVINO runs here on the processor, not on {device}: leave --device out, or --runtime.")
    check_device(device)
    if precision == "bfloat16" and not (processor.has_bfloat16() if on_processor else _gpu_has_bfloat16(device)):
        lacks = (
            "This processor does not compute in bfloat16 (it has none of AVX512_BF16, AMX and ARM's BF16)"
            if on_processor
            else f"The device {device} does not compute in bfloat16"
        )
        raise UsageError(f"{lacks}, so it would be slower and less exact. Use --precision float32.")


def runtime_of_recipe(runtime: str, precision: str, device: str) -> str | None:
    """What the recipe says of the runtime: nothing at float32, where every runtime has to agree with eager torch; else
    the one that computes, which for ``auto`` is settled by the machine alone."""
    if precision == "float32":
        return None
    if runtime != "auto":
        return runtime
    return "openvino" if device == "cpu" and openvino_library.is_installed() else "torch"


def passes_for(
    backbone: Backbone, *, at_once: int = 1, cores: int | None = None, images: int | None = None, convert: bool = True
) -> Passes:
    """What runs batches through a backbone: the runtime chosen, or with ``auto`` the fastest that proves itself.

    Args:
        backbone: the backbone.
        at_once: passes at one time, where the runtime allows several.
        cores: cores that these passes share; all that this process may use by default.
        images: images in a pass; by default what the runtime is best with.
        convert: with ``auto``, convert a network of which no proven graph is kept, which takes seconds.
    """
    from featcache.backbones.runtimes.passes import GraphPasses, TorchPasses

    named = runtime_of_recipe(backbone.runtime, backbone.precision, backbone.device) or backbone.runtime
    if named == "torch" or backbone.device != "cpu":
        return TorchPasses(backbone, images)
    must = named == "openvino"
    return GraphPasses(
        backbone, images=images, at_once=at_once, cores=cores or processor.cores(), must=must,
        may_convert=convert or must,
    )  # fmt: skip


def passes_of(network: Any, **wishes: Any) -> Passes:
    """What runs batches through a `Backbone`, or through something else that has its ``forward``.

    Args:
        network: a backbone, or what stands for one.
        wishes: as for `passes_for`.
    """
    from featcache.backbones.runtimes.passes import PlainPasses

    make = getattr(network, "passes", None)
    made: Passes = PlainPasses(network, wishes.get("images")) if make is None else make(**wishes)
    return made


def _gpu_has_bfloat16(device: str) -> bool:
    import torch

    if torch.device(device).type != "cuda":
        return False
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
