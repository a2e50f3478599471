"""`advise`: which strategy suits these images, by measurement on the items to learn from."""

from featcache.finetuning.advise.report import Advice
from featcache.finetuning.advise.run import advise

__all__ = ["Advice", "advise"]
