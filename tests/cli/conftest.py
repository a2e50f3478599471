"""A network that is there without a download and quick."""

from __future__ import annotations

import pytest
import timm
from safetensors.torch import save_file

from featcache.backbones.recipe_cache import cache_folder
from tests.backbones.making import randomised


@pytest.fixture(scope="session")
def small_network() -> str:
    """The name of timm's smallest network, with random weights at the place where one puts them by hand."""
    weights = cache_folder() / "weights" / "timm_test_efficientnet.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(randomised(timm.create_model("test_efficientnet")).state_dict(), weights)
    return "timm:test_efficientnet"
