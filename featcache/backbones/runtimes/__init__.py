"""Runtimes: what computes the forward passes.

At float32 a runtime is no part of a recipe, because each but eager torch, the reference, has to prove on real images
that it gives the same activations before it is used. Nothing here imports torch or OpenVINO before a pass is made
ready, and a graph that was proven before needs no torch at all.
"""

from featcache.backbones.runtimes.passes import Passes, passes_for

__all__ = ["Passes", "passes_for"]
