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
    from featcache.bundle import Bundle
    from featcache.checks.check_live import CheckLiveReport, check_live
    from featcache.checks.doctor import DoctorReport, doctor
    from featcache.comparison import compare
    from featcache.embedder import CachedEmbedder
    from featcache.errors import FeatcacheError
    from featcache.extraction import ExtractReport, extract
    from featcache.prediction import evaluate
    from featcache.recipe import Recipe
    from featcache.similarity import similar
    from featcache.store import FeatureStore
    from featcache.store.compaction import compact
    from featcache.store.garbage import gc
    from featcache.store.repair import repair
    from featcache.store.verify import verify
    from featcache.strategies.advise import Advice, advise
    from featcache.strategies.finetune import finetune
    from featcache.strategies.multilayer import multilayer
    from featcache.strategies.schedule import Schedule
    from featcache.strategies.tune import activations_needed, tune
    from featcache.sweeping import sweep
    from featcache.training import train

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
    "FeatcacheError",
    "FeatureStore",
    "Recipe",
    "Schedule",
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
    "multilayer",
    "open",
    "repair",
    "similar",
    "sweep",
    "train",
    "tune",
    "verify",
]

# Public name → "module" or "module:attribute.path".
_HOMES = {
    "Advice": "featcache.strategies.advise:Advice",
    "Backbone": "featcache.backbones:Backbone",
    "Bundle": "featcache.bundle:Bundle",
    "CachedEmbedder": "featcache.embedder:CachedEmbedder",
    "CheckLiveReport": "featcache.checks.check_live:CheckLiveReport",
    "DoctorReport": "featcache.checks.doctor:DoctorReport",
    "ExtractReport": "featcache.extraction:ExtractReport",
    "FeatcacheError": "featcache.errors:FeatcacheError",
    "FeatureStore": "featcache.store:FeatureStore",
    "Recipe": "featcache.recipe:Recipe",
    "Schedule": "featcache.strategies.schedule:Schedule",
    "activations_needed": "featcache.strategies.tune:activations_needed",
    "advise": "featcache.strategies.advise:advise",
    "backbones": "featcache.backbones",
    "check_live": "featcache.checks.check_live:check_live",
    "compact": "featcache.store.compaction:compact",
    "compare": "featcache.comparison:compare",
    "doctor": "featcache.checks.doctor:doctor",
    "evaluate": "featcache.prediction:evaluate",
    "extract": "featcache.extraction:extract",
    "faces": "featcache.faces",
    "finetune": "featcache.strategies.finetune:finetune",
    "gc": "featcache.store.garbage:gc",
    "load": "featcache.bundle:Bundle.load",
    "multilayer": "featcache.strategies.multilayer:multilayer",
    "open": "featcache.store:FeatureStore.open",
    "repair": "featcache.store.repair:repair",
    "similar": "featcache.similarity:similar",
    "sweep": "featcache.sweeping:sweep",
    "train": "featcache.training:train",
    "tune": "featcache.strategies.tune:tune",
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
