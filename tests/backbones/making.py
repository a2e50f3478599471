"""Files of weights, images, and reference activations made without featcache."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

if TYPE_CHECKING:
    from featcache.backbones import Backbone


def textile(count: int) -> list[Path]:
    """Some real photographs, the same ones every time."""
    found = importlib.util.find_spec("conformal_clip_data")
    assert found is not None
    assert found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0], "data", "textile_images", "simulated")
    paths = sorted(folder.rglob("*.jpg"))
    return paths[:: len(paths) // count][:count]


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor, statistics of batch normalization too, values of its own that keep activations in bounds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(1 + 0.1 * noise.abs())
            elif tensor.ndim > 1 and "table" not in name:
                tensor.copy_(noise * float(np.sqrt(1.5 / max(1, tensor[0].numel()))))
            elif name.endswith("weight"):
                tensor.copy_(1 + 0.1 * noise)
            else:
                tensor.copy_(0.1 * noise)
    return module.eval()


def saved(module: nn.Module, path: Path) -> Path:
    torch.save(module.state_dict(), path)
    return path


def batch(backbone: Backbone, count: int = 2) -> np.ndarray:
    rng = np.random.default_rng(1)
    images = [Image.fromarray(rng.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8)) for i in range(count)]
    return np.stack([backbone.prepare(image) for image in images])


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest ‖got - expected‖/‖expected‖ of an image."""
    flat = [array.reshape(len(array), -1).astype(np.float64) for array in (got, expected)]
    return float((np.linalg.norm(flat[0] - flat[1], axis=1) / np.linalg.norm(flat[1], axis=1)).max())


def run(backbone: Backbone, images: np.ndarray, *layers: str) -> dict[str, np.ndarray]:
    return backbone.forward(images, backbone.resolve_layers(layers))


def hooked(module: nn.Module, paths: list[str], x: torch.Tensor) -> dict[str, np.ndarray]:
    """What each submodule gives as float64, and the whole under ``""``, copied before anything works on it in place."""
    module = module.eval()
    got: dict[str, np.ndarray] = {}

    def keep(path: str) -> Any:
        return lambda _m, _i, output: got.__setitem__(path, output.detach().numpy().astype(np.float64))

    handles = [module.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    with torch.no_grad():
        got[""] = module(x).numpy().astype(np.float64)
    for handle in handles:
        handle.remove()
    return got


def close(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    assert expected.std() > 1e-3
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
