"""What made the old files and reads them again: the small network whose vectors lie in the store, and drawn tensors."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from threadpoolctl import threadpool_info
from torch import nn

DATA = Path(__file__).parent / "data"
WEIGHTS = DATA / "network.safetensors"


def blank() -> nn.Module:
    """The network (n, 3, 16, 16) → (n, 8) with random weights."""
    module = nn.Sequential()
    module.add_module("stem", nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU()))
    module.add_module(
        "body",
        nn.Sequential(
            nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU()),
            nn.Sequential(nn.Conv2d(6, 8, 3, 1, 1), nn.ReLU()),
        ),
    )
    module.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1)))
    return module


def network() -> nn.Module:
    """The network with its weights."""
    module = blank()
    module.load_state_dict(load_file(WEIGHTS))
    return module


def scratch_head(header: bytes) -> bytes:
    """The file of a head whose network is ``scratch:small_cnn``, too large to be kept: its tensors are drawn.

    Args:
        header: of the file, as safetensors defines it: JSON that names the tensors.
    """
    parts = [len(header).to_bytes(8, "little"), header]
    tensors = [(name, entry) for name, entry in json.loads(header).items() if name != "__metadata__"]
    for name, entry in sorted(tensors, key=lambda pair: pair[1]["data_offsets"]):
        parts.append(drawn(name, entry["dtype"], tuple(entry["shape"])).tobytes())
    return b"".join(parts)


def drawn(name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor that depends on its name alone; of bits whose stream numpy promises not to change."""
    if dtype != "F32" or name.endswith("running_mean"):
        return np.zeros(shape, {"F32": np.float32, "I64": np.int64, "U8": np.uint8}[dtype])
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
    uniform = ((bits >> np.uint64(40)).astype(np.float32) / 2**23 - 1).reshape(shape)
    if len(shape) == 4:  # a convolution: the scale of He et al.
        return uniform * np.float32(math.sqrt(6 / math.prod(shape[1:])))
    return uniform if len(shape) == 2 else 1 + uniform / 4


def kernels() -> dict[str, str]:
    """What decides the last digit of a sum of products: who adds it up, and in which order."""
    blas = sorted({info["architecture"] for info in threadpool_info() if "architecture" in info})
    return {
        "numpy": np.__version__,
        "blas": " ".join(blas),
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
    }
