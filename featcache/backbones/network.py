"""`Network`: a loaded module without its classifier, with its axis order and the digest of its weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from featcache.backbones.activations import Axes, activations, outputs_of
from featcache.backbones.input_size import module_at
from featcache.backbones.layers import POOLED, Layer, LayerInfo
from featcache.core.errors import WeightsError
from featcache.core.recipe import CustomTransform, PixelPath, StandardTransform

if TYPE_CHECKING:
    from featcache.backbones.recipe_cache import SeenFile


@dataclass
class Network:
    """A network ready to run.

    Attributes:
        module: returns the penultimate vector (n, d).
        digest: of the weights without the classifier, which the vectors do not depend on, when it was loaded.
        pixels: how bytes become its input.
        axes: axis order of its activations.
        weights_file: the file that the weights came from, if any.
        custom: the callable of a `CustomTransform`.
        input_size: height and width of the input that *custom* returns.
        weights_state: the file's state before it was read, if it was there.
    """

    module: nn.Module
    digest: str
    pixels: PixelPath
    axes: Axes
    weights_file: Path | None = None
    custom: Callable[[Any], Tensor] | None = None
    input_size: tuple[int, int] | None = None
    weights_state: SeenFile | None = None

    def __post_init__(self) -> None:
        self._digested: tuple[list[tuple[str, int, int]], str] | None = None
        self._digest_as_given: dict[str, str] = {}
        self._held: str | None = None
        # Recipes of before do not know of these, so they count only once they are others.
        self._beside = self._copies_beside()
        self.module.requires_grad_(False)
        self.module.eval()

    def digest_now(self, *, trust_counters: bool = False) -> str:
        """The digest of the weights as they are now: whoever has the module may have trained it on.

        Buffers that are not persistent are digested with them if they have other values than when the network was
        loaded. One of another shape is taken for a cache, which the vectors do not depend on.

        Args:
            trust_counters: read the weights only if torch counted a write to them since they were read last. Writes
                to ``.data``, and to arrays that share the memory, do not count.
        """
        from featcache.backbones.weights import digest_of

        if self._held is not None:
            return self._held
        if not trust_counters:
            digest = digest_of(self.module, self._other_buffers())
            return self._digest_as_given.get(digest, digest)
        counters = [
            (name, tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version)
            for name, tensor in self.module.state_dict().items()
        ]
        if self._digested is None or self._digested[0] != counters:
            self._digested = counters, digest_of(self.module)
        return self._digest_as_given.get(self._digested[1], self._digested[1])

    def at(self, transform: StandardTransform, name: str) -> Network:
        """The same network, and its weights' digest, for images of another size.

        Args:
            transform: its own but for the sizes.
            name: of the network, for the message.

        Raises:
            UsageError: it cannot run at this size.
        """
        made = copy.copy(self)
        made._held = None
        made.pixels = replace(self.pixels, transform=transform)
        if made.size != self.size:
            made.module = module_at(self.module, made.size, self.size, name)
        if made.module is not self.module:
            made.digest, made._digested, made._digest_as_given = self.digest_now(), None, {}
            made._beside = made._copies_beside()
            made._digest_as_given = {made.digest_now(): made.digest}
        return made

    def _copies_beside(self) -> dict[str, Tensor]:
        from featcache.backbones.weights import buffers_beside

        return {name: buffer.detach().clone() for name, buffer in buffers_beside(self.module).items()}

    def _other_buffers(self) -> dict[str, Tensor]:
        from featcache.backbones.weights import buffers_beside

        if not self._beside:
            return {}
        now = buffers_beside(self.module)
        return {
            name: now[name]
            for name, before in self._beside.items()
            if name in now and now[name].shape == before.shape and not torch.equal(now[name].to(before), before)
        }

    @contextmanager
    def held(self, digest: str | None = None) -> Iterator[None]:
        """Within it the weights are those of its beginning: they are digested once, and once more at its end.

        Args:
            digest: of the weights as they are now, if that is known.

        Raises:
            WeightsError: they are others at the end.
        """
        if self._held is not None:
            yield
            return
        self._held = began = digest or self.digest_now()
        try:
            yield
        finally:
            self._held = None
        if self.digest_now() != began:
            raise WeightsError(
                "The weights of the network were changed while it computed vectors, so some of these are of other "
                "weights than their recipe says. Let nothing train it meanwhile, and extract into a new store."
            )

    @property
    def names(self) -> list[str]:
        """Paths of all modules, in network order."""
        return [name for name, _ in self.module.named_modules() if name]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input."""
        transform = self.pixels.transform
        if isinstance(transform, StandardTransform):
            return transform.crop
        return self.input_size or (224, 224)

    @property
    def device(self) -> torch.device:
        """The torch device of its weights."""
        return next(iter(self.module.parameters()), torch.empty(0)).device

    def to(self, device: str) -> None:
        """Move to a torch device, in the memory format that is fastest for convolutions."""
        if device != "cpu":
            # float32 must be float32: TensorFloat-32 keeps ten bits of the mantissa.
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self.module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, batch: np.ndarray, layers: Sequence[Layer], precision: str = "float32") -> dict[str, np.ndarray]:
        """One frozen pass in eager torch, the reference for every other runtime.

        Args:
            batch: (n, h, w, 3) uint8 for a standard transform, otherwise (n, 3, h, w) float32.
            layers: the layers to compute.
            precision: ``float32``, or ``bfloat16`` for torch's autocast (its accuracy is not measured).

        Returns:
            A float32 array (n, …) by layer name.
        """
        # A caller may have changed the mode of the module.
        self.module.eval()
        x = self.to_input(batch)
        mixed = torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16")
        with torch.inference_mode(), mixed:
            got = activations(self.module, layers, self.axes, x)
            return {name: value.float().cpu().numpy() for name, value in got.items()}

    def to_input(self, batch: np.ndarray) -> Tensor:
        """The module's input (n, 3, h, w) float32 on its device."""
        device = self.device
        x = torch.from_numpy(np.ascontiguousarray(batch))
        if device.type == "cuda":
            # From pinned memory the copy is asynchronous; not measured.
            x = x.pin_memory().to(device, non_blocking=True)
        return self.normalize(x.to(device))

    def normalize(self, x: Tensor) -> Tensor:
        """uint8 images (n, h, w, 3) as the module's input (n, 3, h, w) float32; a callable's output as it is."""
        transform = self.pixels.transform
        if isinstance(transform, CustomTransform):
            return x.to(torch.float32)
        x = x.permute(0, 3, 1, 2).to(torch.float32).div_(255)
        mean = torch.tensor(transform.mean, device=x.device).view(1, 3, 1, 1)
        std = torch.tensor(transform.std, device=x.device).view(1, 3, 1, 1)
        return x.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)

    def shapes_of(self, layers: Sequence[Layer]) -> dict[str, tuple[int, ...]]:
        """Shapes of one image's activations, from a pass of zeros, which also checks the layers."""
        return {name: tuple(got.shape[1:]) for name, got in self.forward(self._zeros(), layers).items()}

    def layer_infos(self) -> list[LayerInfo]:
        """The modules that can be layers, except those inside a block, in network order, and ``pooled``."""
        paths = self.blocks()
        with torch.inference_mode():
            outputs = outputs_that_exist(self.module, set(paths), self.to_input(self._zeros()))
        infos = []
        for path in paths:
            output = outputs.get(path)
            if not isinstance(output, Tensor) or output.ndim < 2:
                continue
            order = self.axes.of(self.module.get_submodule(path), output)
            shape = tuple(output.shape[1:])
            size = math.prod(shape)
            channels = {"NC": shape[0], "NCHW": shape[0]}.get(order, shape[-1])
            infos.append(LayerInfo(path, shape, order[1:] or "?", 4 * channels, 0 if order == "NC" else 2 * size))
        whole = outputs[""]
        if isinstance(whole, Tensor) and whole.ndim == 2:
            infos.append(LayerInfo(POOLED, tuple(whole.shape[1:]), "C", 4 * whole.shape[1], 0))
        return infos

    def blocks(self) -> list[str]:
        """Paths of the network's parts and, for lists of blocks, of their blocks; of nothing inside a block."""
        found: list[str] = []

        def visit(module: nn.Module, path: str) -> None:
            for name, part in module.named_children():
                inner = f"{path}{name}"
                if not isinstance(part, (nn.ModuleList, nn.Identity, nn.Dropout)):
                    found.append(inner)
                lists = [c for c in part.children() if isinstance(c, (nn.Sequential, nn.ModuleList))]
                if isinstance(part, (nn.Sequential, nn.ModuleList)) or (not path and lists):
                    visit(part, f"{inner}.")

        visit(self.module, "")
        return found

    def _zeros(self) -> np.ndarray:
        height, width = self.size
        if isinstance(self.pixels.transform, CustomTransform):
            return np.zeros((1, 3, height, width), np.float32)
        return np.zeros((1, height, width, 3), np.uint8)


def outputs_that_exist(module: nn.Module, paths: set[str], x: Tensor) -> dict[str, Any]:
    """`outputs_of` without the submodules that run twice or never, which cannot be layers."""
    seen: dict[str, int] = {}
    handles = [
        module.get_submodule(path).register_forward_hook(
            lambda _m, _i, _o, path=path: seen.__setitem__(path, seen.get(path, 0) + 1)
        )
        for path in paths
    ]
    module(x)
    for handle in handles:
        handle.remove()
    return outputs_of(module, {path for path, times in seen.items() if times == 1}, x)
