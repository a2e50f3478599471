"""The family ``dlib``: its face network, ``dlib:face_resnet``, run by torch.

The input is an aligned face of 150 × 150 pixels (dlib's ``get_face_chip`` with padding 0.25). Other images are resized
to that, but the network was trained on aligned faces only. ``pooled`` is dlib's face descriptor. The registry imports
this module for every backbone, so torch is imported by `load` and `blueprint` only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featcache.backbones.families.dlib_weights import (
    FACE_NETWORK,
    MEAN,
    SIDE,
    face_network_arrays,
    installed_path,
    published_bytes,
)
from featcache.core.errors import UnknownNameError
from featcache.core.recipe import PixelPath, StandardTransform

if TYPE_CHECKING:
    from featcache.backbones.network import Network

NAMES = ("face_resnet",)
PARAMETERS = 5_607_488
LICENCE = "public domain"

# dlib computes (x - mean) / 256 of x in 0…255, a transform here (x / 255 - mean) / std.
TRANSFORM = StandardTransform(
    resize=(SIDE, SIDE),
    crop=(SIDE, SIDE),
    interpolation="bilinear",
    mean=(MEAN[0] / 255, MEAN[1] / 255, MEAN[2] / 255),
    std=(256 / 255, 256 / 255, 256 / 255),
)


def check_name(name: str) -> None:
    """Check that the family has a network of that name.

    Raises:
        UnknownNameError: it has none.
    """
    if name not in NAMES:
        raise UnknownNameError.among("network of dlib", name, NAMES)


def load(name: str, weights: Path | None) -> Network:
    """Load ``dlib:face_resnet``.

    Args:
        name: of the network.
        weights: the published file where it is not the installed one; no other is taken.

    Raises:
        UnknownNameError: there is no such network.
        MissingExtraError: the extra ``faces`` is not installed and no file was given.
        WeightsError: the file is not the published one.
    """
    from featcache.backbones.activations import Axes
    from featcache.backbones.families.dlib_resnet import FaceResNet, folded
    from featcache.backbones.network import Network
    from featcache.backbones.weights import digest_of, load_into, seen_file

    check_name(name)
    path = weights or installed_path(FACE_NETWORK)
    before = seen_file(path)
    arrays = face_network_arrays(published_bytes(FACE_NETWORK, path), str(path))
    module = FaceResNet()
    load_into(module, folded(arrays), str(path))
    return Network(module, digest_of(module), PixelPath(TRANSFORM), Axes("NCHW"), path, weights_state=before)


def blueprint(name: str) -> Network:
    """The same network without its weights, to look at its layers."""
    from featcache.backbones.activations import Axes
    from featcache.backbones.families.dlib_resnet import FaceResNet
    from featcache.backbones.network import Network

    check_name(name)
    return Network(FaceResNet(), "", PixelPath(TRANSFORM), Axes("NCHW"))
