"""Heads × layers in one go: which head on which layers is worth keeping."""

from featcache.sweeping.report import SweepReport
from featcache.sweeping.run import sweep

__all__ = ["SweepReport", "sweep"]
