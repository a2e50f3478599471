"""`advise`: which strategy suits these images, by measurement on the items to learn from."""

from featcache.strategies.advise.report import Advice
from featcache.strategies.advise.run import advise

__all__ = ["Advice", "advise"]
