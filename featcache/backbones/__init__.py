"""Backbones: frozen networks with their weights and their own preprocessing.

`get` makes one by its full name, `Backbone.from_module` from any network in Python, `available` lists
what there is. Nothing here imports torch before a network has to be loaded.
"""

from featcache.backbones.backbone import Backbone
from featcache.backbones.extractor import Extractor
from featcache.backbones.layers import Layer, LayerInfo
from featcache.backbones.registry import ModelInfo, available, bfloat16_floor, for_recipe, get
from featcache.backbones.testing import tiny_backbone

__all__ = [
    "Backbone",
    "Extractor",
    "Layer",
    "LayerInfo",
    "ModelInfo",
    "available",
    "bfloat16_floor",
    "for_recipe",
    "get",
    "tiny_backbone",
]
