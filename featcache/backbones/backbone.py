"""`Backbone`: a frozen network with its weights and its own preprocessing, loaded when it is first needed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.backbones import layers as naming
from featcache.backbones.compute import check_choice, runtime_of_recipe
from featcache.backbones.layers import POOLED, Layer, LayerInfo
from featcache.backbones.recipe_cache import CachedRecipe, RecipeCache
from featcache.backbones.runtimes import passes_for
from featcache.core.errors import UnusableImageError, UsageError, WeightsError
from featcache.core.recipe import CustomTransform, PixelPath, Recipe, StandardTransform
from featcache.images import decode as decoding
from featcache.images.decode import SCALED, Decoded
from featcache.images.transforms import IMPLEMENTATIONS, PixelTransform

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

    from featcache.backbones.network import Network
    from featcache.backbones.runtimes.openvino import CompiledGraph
    from featcache.backbones.runtimes.passes import Passes
    from featcache.backbones.split import Cut


class Backbone:
    """A frozen network; get one from ``featcache.backbones.get`` or `Backbone.from_module`.

    As long as only the recipe and layers are asked for that an earlier process has seen, neither the
    network nor torch is loaded.

    Args:
        name: full name, ``family:name``.
        load: loads the network.
        blueprint: makes the network without its weights, where that is quicker.
        device: ``cpu`` (by default), ``cuda``, ``cuda:1``, …, see `featcache.backbones.compute`.
        runtime: ``auto``, ``torch`` or ``openvino``, see `featcache.backbones.runtimes`.
        precision: ``float32`` or ``bfloat16``.
        cache: where what was learned of this backbone is kept for later processes.

    Raises:
        UnknownNameError: no such runtime, precision or kind of device.
        UsageError: this machine does not have them.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Network],
        *,
        blueprint: Callable[[], Network] | None = None,
        device: str | None = None,
        runtime: str = "auto",
        precision: str = "float32",
        cache: RecipeCache | None = None,
    ) -> None:
        self.name = name
        self.quarantine_key = ""  # what can be decoded can be used
        self.device = "cpu" if device is None else device
        check_choice(runtime, precision, self.device)
        self.runtime, self.precision = runtime, precision
        self.compiled: dict[tuple[Any, ...], CompiledGraph] = {}
        """Graphs of this network that are ready in this process; `featcache.backbones.runtimes` keeps them."""
        self.origin: Callable[[], Backbone] | None = None
        """Makes the same backbone in another process."""
        self._load = load
        self._blueprint = blueprint or load
        self._cache = cache
        self._network: Network | None = None
        self._known: CachedRecipe | None = cache.read() if cache is not None else None
        self._like: PixelPath | None = None
        self._pixels: PixelTransform | None = None

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        transform: StandardTransform | Callable[[Image], Any],
        name: str,
        version: str | None = None,
        axes: str | None = None,
        prefix_tokens: int = 0,
        input_size: tuple[int, int] | None = None,
        device: str | None = None,
    ) -> Backbone:
        """Make a backbone of any network.

        Args:
            module: maps (n, 3, h, w) float32 to vectors (n, d). It is set to eval mode and frozen.
            transform: a `StandardTransform`, or a callable from an RGB PIL image to a float tensor
                (3, h, w). Of a callable the recipe knows *name* and *version* alone: change the version
                whenever the callable changes.
            name: the backbone's name, without a family.
            version: of the module and a callable transform, part of the recipe; needed with a callable. The recipe
                knows a module by its name, version and weights alone, so two that compute different things with the
                same weights need two versions.
            axes: order of the activations inside, ``NCHW``, ``NHWC`` or ``NLC`` (tokens); needed for
                layers other than ``pooled``.
            prefix_tokens: tokens before those of the image's patches.
            input_size: height and width of the input that a callable makes, 224 by 224 by default.
            device: torch device.

        Raises:
            UsageError: a callable without a version, or an unknown order of axes.
        """
        if ":" in name or not name:
            raise UsageError(f"The name {name!r} should be one word without a colon.")
        if axes not in (None, "NCHW", "NHWC", "NLC"):
            raise UsageError(f"The order of axes is 'NCHW', 'NHWC' or 'NLC', not {axes!r}.")
        if not isinstance(transform, StandardTransform) and not version:
            raise UsageError(
                "A callable transform is known by its name and version alone: give version='1', and another one "
                "whenever the callable changes."
            )

        def load() -> Network:
            from featcache.backbones.activations import Axes
            from featcache.backbones.network import Network
            from featcache.backbones.weights import digest_of

            standard = isinstance(transform, StandardTransform)
            made = transform if standard else CustomTransform(name, str(version))
            return Network(
                module=module,
                digest=digest_of(module),
                pixels=PixelPath(made),  # type: ignore[arg-type]
                axes=Axes(None if axes == "NLC" else axes, axes == "NLC", prefix_tokens),
                custom=None if standard else transform,  # type: ignore[arg-type]  # `standard` says which
                input_size=input_size,
            )

        # A callable transform carries the version itself.
        marked = f"{name}@{version}" if version and isinstance(transform, StandardTransform) else name
        made = cls(f"module:{marked}", load, device=device)
        made.origin = functools.partial(
            cls.from_module, module, transform=transform, name=name, version=version, axes=axes,
            prefix_tokens=prefix_tokens, input_size=input_size, device=device,
        )  # fmt: skip
        return made

    def with_runtime(self, *, runtime: str = "auto", precision: str = "float32") -> Backbone:
        """The same backbone on another runtime, or at another precision.

        Raises:
            UnknownNameError: no such runtime, precision or kind of device.
            UsageError: this machine does not have them.
        """
        if (runtime, precision) == (self.runtime, self.precision):
            return self
        check_choice(runtime, precision, self.device)
        made = Backbone.__new__(Backbone)
        made.__dict__.update(self.__dict__)
        made.runtime, made.precision = runtime, precision
        if self.origin is not None:
            made.origin = functools.partial(_running, self.origin, runtime, precision)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Backbone:
        # It is frozen, so a copy (scikit-learn's `clone` makes one a fold) would only be another load.
        return self

    def __reduce__(self) -> tuple[Callable[[], Backbone], tuple[()]]:
        # Another process makes it anew: by its name, or of the module itself.
        if self.origin is None:
            raise TypeError(f"The backbone {self.name} does not know how it was made, so it cannot be pickled.")
        return self.origin, ()

    def __repr__(self) -> str:
        return f"Backbone({self.name!r})"

    @property
    def network(self) -> Network:
        """The loaded network.

        Raises:
            WeightsError: it is not the one that an earlier process saw behind the same file of weights.
        """
        if self._network is None:
            network = self._load()
            if self._known is not None and self._known.recipe != self._recipe_of(network):
                # Under the recipe that was announced its vectors would be mixed with those of other weights.
                self._known = None
                if self._cache is not None:
                    self._cache.forget()
                raise WeightsError(
                    f"The weights of {self.name} are not those that were found in the same file before: it was changed "
                    "at this moment, or what was kept about it is wrong and is forgotten now. Run the command again."
                )
            self._network = network
            network.to(self.device)
        return self._network

    @property
    def module(self) -> nn.Module:
        """The frozen module; it gives the penultimate vectors (n, d)."""
        return self.network.module

    def load(self) -> None:
        """Load the network, if that was not done before.

        Raises:
            WeightsError: as `network`.
        """
        _ = self.network

    @property
    def is_custom(self) -> bool:
        """Whether it was made from a module, and not found by its name."""
        return self._cache is None

    @property
    def library(self) -> str | None:
        """The package whose code makes the network, where it was found by its name."""
        return None if self._cache is None else self._cache.library

    @property
    def recipe(self) -> Recipe:
        """What identifies the vectors of this backbone."""
        recipe = self._published()
        if self._like is not None:
            recipe = replace(recipe, pixels=_followed(recipe.pixels, self._like))
        runtime = runtime_of_recipe(self.runtime, self.precision, self.device)
        return replace(recipe, precision=self.precision, runtime=runtime)

    def with_pixels(self, pixels: PixelPath) -> Backbone:
        """The same network, its images decoded and resized by the code that *pixels* names.

        A head needs the pixels that it was trained on, also where newer code is the default. Only the names of code
        are taken over (decoder, implementation, ``scaled``), and only those that this featcache has; sizes, mean and
        so on stay as published.
        """
        if _followed(self.recipe.pixels, pixels) == self.recipe.pixels:
            return self
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.origin = None if self.origin is None else functools.partial(_following, self, pixels)
        made._load = lambda: self.network  # once in memory serves both
        made._like, made._pixels = pixels, None
        return made

    def scaled(self) -> Backbone:
        """The same network, large JPEG photographs made smaller while they are decoded: a recipe of its own.

        Raises:
            UsageError: a callable transforms the image, and of what size it wants it nobody knows.
        """
        pixels = self.recipe.pixels
        if not isinstance(pixels.transform, StandardTransform):
            raise UsageError(
                f"The transform of {self.name} is a callable, so it is not known how small its images may be. "
                "Leave out scaled, or give a StandardTransform."
            )
        return self.with_pixels(replace(pixels, scaled=SCALED))

    def _published(self) -> Recipe:
        """The recipe at float32 with the code that is the default."""
        if self._network is None and self._known is not None:
            return self._known.recipe
        recipe = self._recipe_of(self.network)
        self._learn(recipe, {})
        return recipe

    def resolve_layers(self, layers: Sequence[str]) -> list[Layer]:
        """Check layers and put them into network order.

        Args:
            layers: names or globs, see `featcache.backbones.layers.expand`.

        Raises:
            UnknownNameError: no such module.
            UsageError: a layer that cannot be pooled so.
        """
        if self._network is None and self._known is not None:
            names = naming.expand(layers, self._known.names)
            if set(names) <= self._known.layers.keys():
                return [self._known.layers[name] for name in names]
        network = self.network
        found = naming.expand(layers, network.names)
        wanted = [Layer(name, naming.position(name, network.names), ()) for name in found]
        shapes = network.shapes_of(wanted)
        chosen = [replace(layer, shape=shapes[layer.name]) for layer in wanted]
        self._learn(self._published(), {layer.name: layer for layer in chosen})
        return chosen

    def layers(self) -> list[LayerInfo]:
        """The layers that can be chosen, in network order, ``pooled`` last. No weights are needed for this."""
        return (self._network or self._blueprint()).layer_infos()

    def architecture(self) -> Network:
        """The network with random weights, made anew; one made of a module is that module with its own."""
        return self._blueprint()

    def cut(self, layer: str) -> Cut:
        """The network in two where *layer* begins, the later part as a trainable copy; `featcache.backbones.split`."""
        from featcache.backbones.split import cut

        return cut(self.network, layer)

    def decode(self, data: bytes) -> Decoded:
        """An image file's bytes as an image, by the decoder of the recipe.

        Args:
            data: as for `featcache.images.decode.decode_rgb`.

        Raises:
            UnusableImageError, ImageMemoryError, UsageError: as there.
        """
        pixels = self.recipe.pixels
        resized = None if pixels.scaled is None else self._pixel_transform().resized
        return decoding.decode(data, pixels.decoder, resized)

    def prepare(self, image: Image | Decoded, sha256: bytes | None = None) -> np.ndarray:
        """An image as the network's input.

        Args:
            image: an upright RGB image, or what `decode` made.
            sha256: of its bytes; the input depends on the image alone.

        Returns:
            (h, w, 3) uint8 for a published transform, (3, h, w) float32 for a callable.

        Raises:
            UnusableImageError: the image cannot be resized, or the callable gave no (3, h, w) tensor.
        """
        if isinstance(self.recipe.pixels.transform, StandardTransform):
            return self._pixel_transform()(image)
        assert self.network.custom is not None
        picture = image.image if isinstance(image, Decoded) else image
        made = np.asarray(self.network.custom(picture), dtype=np.float32)
        if made.ndim != 3 or made.shape[0] != 3:
            raise UnusableImageError(f"the transform gave shape {made.shape}, not (3, height, width)")
        return made

    def _pixel_transform(self) -> PixelTransform:
        if self._pixels is None:
            transform = self.recipe.pixels.transform
            assert isinstance(transform, StandardTransform)
            self._pixels = PixelTransform(transform)
        return self._pixels

    def forward(self, batch: np.ndarray, layers: Sequence[Layer]) -> dict[str, np.ndarray]:
        """One pass in eager torch, in eval and inference mode; `passes` gives faster ones.

        Args:
            batch: (n, …) what `prepare` gave for n images.
            layers: from `resolve_layers`.

        Returns:
            For each layer's name its activations (n, …) float32.
        """
        return self.network.forward(batch, layers, self.precision)

    def passes(
        self, *, at_once: int = 1, cores: int | None = None, images: int | None = None, convert: bool = True
    ) -> Passes:
        """What runs batches on the runtime that was chosen; see `featcache.backbones.runtimes.passes_for`."""
        return passes_for(self, at_once=at_once, cores=cores, images=images, convert=convert)

    def _recipe_of(self, network: Network) -> Recipe:
        return Recipe(self.name, network.digest, network.pixels)

    def _learn(self, recipe: Recipe, layers: dict[str, Layer]) -> None:
        known = self._known
        if known is None or known.recipe != recipe:
            known = CachedRecipe(recipe, self.network.names, {})
        if self._known is known and layers.keys() <= known.layers.keys():
            return
        self._known = CachedRecipe(recipe, known.names, known.layers | layers)
        file, state = self.network.weights_file, self.network.weights_state
        if self._cache is not None and file is not None and state is not None:
            self._cache.write(self._known, file, state)


def _following(backbone: Backbone, pixels: PixelPath) -> Backbone:
    return backbone.with_pixels(pixels)


def _followed(own: PixelPath, other: PixelPath) -> PixelPath:
    """*own* with the names of code of *other*, as far as there is such code here."""
    mine, theirs = own.transform, other.transform
    if isinstance(mine, StandardTransform) and isinstance(theirs, StandardTransform):
        if theirs.implementation in IMPLEMENTATIONS:
            mine = replace(mine, implementation=theirs.implementation)
        if other.scaled in (None, SCALED):
            own = replace(own, scaled=other.scaled)
    decoder = other.decoder if other.decoder in decoding.DECODERS else own.decoder
    return replace(own, transform=mine, decoder=decoder)


def _running(origin: Callable[[], Backbone], runtime: str, precision: str) -> Backbone:
    return origin().with_runtime(runtime=runtime, precision=precision)


__all__ = ["POOLED", "Backbone"]
