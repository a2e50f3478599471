"""Runtimes: what computes the forward passes, eager torch or OpenVINO.

At float32 the runtime is not part of a recipe, because every runtime must first give the activations of eager torch on
real images. torch and OpenVINO are imported only when a pass is prepared, and a cached graph runs without torch.
"""

from featcache.backbones.runtimes.passes import Passes, passes_for

__all__ = ["Passes", "passes_for"]
