"""Run the backbone once, train heads on its features again and again.

    import featcache as fc

    fc.extract("photos/", "pets.fcache")
    bundle = fc.train("pets.fcache")
    bundle.predict(["a.jpg"])

The names in ``__all__`` are the public API; the rest is reached by module path. Each is imported on
first use, so that ``import featcache`` costs nothing and reading a store never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache import backbones, faces
    from featcache.backbones import Backbone
    from featcache.core.errors import FeatcacheError
    from featcache.core.recipe import Recipe
    from featcache.extraction import ExtractReport
    from featcache.extraction.doctor import DoctorReport, doctor
    from featcache.extraction.extract import extract
    from featcache.extraction.recheck import CheckLiveReport, check_live
    from featcache.extraction.run import ExtractionConfig
    from featcache.extraction.search import similar
    from featcache.extraction.transformer import CachedEmbedder
    from featcache.finetuning.advise import Advice, advise
    from featcache.finetuning.config import TrainingConfig
    from featcache.finetuning.finetune import activations_needed, finetune
    from featcache.store import FeatureStore
    from featcache.store.compact import compact
    from featcache.store.gc import gc
    from featcache.store.repair import repair
    from featcache.store.verify import verify
    from featcache.training.bundle import Bundle
    from featcache.training.compare import compare
    from featcache.training.evaluate import evaluate
    from featcache.training.sweep import sweep
    from featcache.training.train import train

    load = Bundle.load
    open = FeatureStore.open

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "Backbone",
    "Bundle",
    "CachedEmbedder",
    "CheckLiveReport",
    "DoctorReport",
    "ExtractReport",
    "ExtractionConfig",
    "FeatcacheError",
    "FeatureStore",
    "Recipe",
    "TrainingConfig",
    "__version__",
    "activations_needed",
    "advise",
    "backbones",
    "check_live",
    "compact",
    "compare",
    "doctor",
    "evaluate",
    "extract",
    "faces",
    "finetune",
    "gc",
    "load",
    "open",
    "repair",
    "similar",
    "sweep",
    "train",
    "verify",
]

# Public name → "module" or "module:attribute.path".
_HOMES = {
    "Advice": "featcache.finetuning.advise:Advice",
    "Backbone": "featcache.backbones:Backbone",
    "Bundle": "featcache.training.bundle:Bundle",
    "CachedEmbedder": "featcache.extraction.transformer:CachedEmbedder",
    "CheckLiveReport": "featcache.extraction.recheck:CheckLiveReport",
    "DoctorReport": "featcache.extraction.doctor:DoctorReport",
    "ExtractReport": "featcache.extraction:ExtractReport",
    "ExtractionConfig": "featcache.extraction.run:ExtractionConfig",
    "FeatcacheError": "featcache.core.errors:FeatcacheError",
    "FeatureStore": "featcache.store:FeatureStore",
    "Recipe": "featcache.core.recipe:Recipe",
    "TrainingConfig": "featcache.finetuning.config:TrainingConfig",
    "activations_needed": "featcache.finetuning.finetune:activations_needed",
    "advise": "featcache.finetuning.advise:advise",
    "backbones": "featcache.backbones",
    "check_live": "featcache.extraction.recheck:check_live",
    "compact": "featcache.store.compact:compact",
    "compare": "featcache.training.compare:compare",
    "doctor": "featcache.extraction.doctor:doctor",
    "evaluate": "featcache.training.evaluate:evaluate",
    "extract": "featcache.extraction.extract:extract",
    "faces": "featcache.faces",
    "finetune": "featcache.finetuning.finetune:finetune",
    "gc": "featcache.store.gc:gc",
    "load": "featcache.training.bundle:Bundle.load",
    "open": "featcache.store:FeatureStore.open",
    "repair": "featcache.store.repair:repair",
    "similar": "featcache.extraction.search:similar",
    "sweep": "featcache.training.sweep:sweep",
    "train": "featcache.training.train:train",
    "verify": "featcache.store.verify:verify",
}


def __getattr__(name: str) -> Any:
    try:
        module, _, attributes = _HOMES[name].partition(":")
    except KeyError:
        raise AttributeError(f"module 'featcache' has no attribute {name!r}") from None
    value: Any = import_module(module)
    for attribute in filter(None, attributes.split(".")):
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
