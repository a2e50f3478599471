"""`Backbone`: a frozen network with its weights and its own preprocessing, loaded when it is first needed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featcache.backbones import layers as naming
from featcache.backbones.compute import check_choice, runtime_of_recipe
from featcache.backbones.given_module import loader_of
from featcache.backbones.input_size import InputSize
from featcache.backbones.layers import Layer, LayerInfo
from featcache.backbones.recipe_cache import CachedRecipe, RecipeCache
from featcache.core.arguments import checked
from featcache.core.errors import UsageError, WeightsError
from featcache.core.recipe import PixelPath, Recipe, StandardTransform
from featcache.images import inputs
from featcache.images.decode import SCALED, Decoded
from featcache.images.transforms import published, with_code_of, with_size_of

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import nn

    from featcache.backbones.network import Network


class Backbone:
    """A frozen network; get one from ``featcache.backbones.get`` or `Backbone.from_module`.

    Neither the network nor torch is loaded while only its recipe and layers are needed and an earlier process has
    cached them.

    Args:
        name: full name, ``family:name``.
        load: loads the network.
        blueprint: makes the network without its weights, if that is faster.
        device: ``cpu`` (by default), ``cuda``, ``cuda:1``, …, see `featcache.backbones.compute`.
        runtime: ``auto``, ``torch`` or ``openvino``, see `featcache.backbones.runtimes`.
        precision: ``float32`` or ``bfloat16``.
        cache: keeps the recipe and layers for later processes.

    Raises:
        UnknownNameError: no such runtime, precision or kind of device.
        UsageError: this machine does not have them.
    """

    @checked
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
        self.origin: Callable[[], Backbone] | None = None
        """Makes the same backbone in another process."""
        self._load = load
        self._blueprint = blueprint or load
        self._cache = cache
        self._network: Network | None = None
        self._known: CachedRecipe | None = cache.read() if cache is not None else None
        self._code_of: PixelPath | None = None
        self._as_published: Backbone | None = None
        """The same at the published size, where this is at another."""

    @classmethod
    @checked
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
        """Make a backbone from any network.

        Args:
            module: maps (n, 3, h, w) float32 to vectors (n, d). It is set to eval mode and frozen. If its parameters or
                buffers change later, the vectors follow another recipe from then on.
            transform: a `StandardTransform`, or a callable from an RGB PIL image to a float tensor (3, h, w). A
                callable enters the recipe by *name* and *version* only: change the version when the callable changes.
            name: the backbone's name, without a family.
            version: of the module and the callable; required with a callable. The recipe identifies a module by name,
                version and weights, so two modules that compute different things with equal weights need two versions.
            axes: axis order of the inner activations, ``NCHW``, ``NHWC`` or ``NLC`` (tokens); required for layers
                other than ``pooled``.
            prefix_tokens: tokens before those of the image patches.
            input_size: height and width that the callable returns, 224 × 224 by default.
            device: torch device.

        Raises:
            UsageError: a callable without a version, or an unknown axis order.

        Example:
            >>> from torch import nn
            >>> from featcache.core.recipe import StandardTransform
            >>> module = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
            >>> transform = StandardTransform((32,), (32, 32), "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
            >>> Backbone.from_module(module, transform=transform, name="mine").resolve_layers(["pooled"])[0].shape
            (8,)
        """
        load = loader_of(module, transform, (name, version), (axes, prefix_tokens), input_size)
        # A callable transform carries the version itself.
        marked = f"{name}@{version}" if version and isinstance(transform, StandardTransform) else name
        made = cls(f"module:{marked}", load, device=device)
        made.origin = functools.partial(
            cls.from_module, module, transform=transform, name=name, version=version, axes=axes,
            prefix_tokens=prefix_tokens, input_size=input_size, device=device,
        )  # fmt: skip
        return made

    @checked
    def with_runtime(self, *, runtime: str = "auto", precision: str = "float32") -> Backbone:
        """The same backbone on another runtime or at another precision.

        Raises:
            UnknownNameError: no such runtime, precision or kind of device.
            UsageError: this machine does not have them.
        """
        if (runtime, precision) == (self.runtime, self.precision):
            return self
        check_choice(runtime, precision, self.device)
        origin = functools.partial(Backbone.with_runtime, self, runtime=runtime, precision=precision)
        return self._changed(origin, runtime=runtime, precision=precision)

    def _changed(self, origin: Callable[[], Backbone], **attributes: Any) -> Backbone:
        """A copy with other values of these attributes; *origin* makes it in another process."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__ | attributes)
        made.origin = None if self.origin is None else origin
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Backbone:
        # It is frozen: a copy (scikit-learn's `clone` makes one per fold) would only load it again.
        return self

    def __reduce__(self) -> tuple[Callable[[], Backbone], tuple[()]]:
        if self.origin is None:
            raise TypeError(f"The backbone {self.name} has no origin to be made from again, so it cannot be pickled.")
        return self.origin, ()

    def __repr__(self) -> str:
        return f"Backbone({self.name!r})"

    @property
    def network(self) -> Network:
        """The loaded network.

        Raises:
            WeightsError: its weights are not those that an earlier process read from the same file.
        """
        if self._network is None:
            network = self._load()
            recipe = Recipe(self.name, network.digest, network.pixels)
            if self._known is not None and self._known.recipe != recipe:
                # Its vectors would be stored under the recipe of other weights.
                self._known = None
                if self._cache is not None:
                    self._cache.forget()
                raise WeightsError(
                    f"The weights of {self.name} differ from those cached for the same file: the file changed just "
                    "now, or the cache entry was wrong. The entry is deleted. Run the command again."
                )
            self._network = network
            network.to(self.device)
        return self._network

    @property
    def module(self) -> nn.Module:
        """The frozen module; it maps (n, 3, h, w) to the penultimate vectors (n, d)."""
        return self.network.module

    def load(self) -> None:
        """Load the network, unless it is loaded. Raises `WeightsError` as `network` does."""
        _ = self.network

    @property
    def is_custom(self) -> bool:
        """Whether it was made from a module, not by name."""
        return self._cache is None

    @property
    def weights_given(self) -> str | None:
        """The file of weights that was given in place of the published ones."""
        return None if self._cache is None else self._cache.weights

    @property
    def library(self) -> str | None:
        """The package that defines the network, if the backbone was made by name."""
        return None if self._cache is None else self._cache.library

    @property
    def recipe(self) -> Recipe:
        """Identifies the vectors that this backbone computes now: once loaded, its weights are digested when asked."""
        runtime = runtime_of_recipe(self.runtime, self.precision, self.device)
        published = self._published()
        return replace(
            published,
            weights=self._weights(published),
            pixels=self.pixels,
            precision=self.precision,
            runtime=runtime,
        )

    def _weights(self, published: Recipe) -> str:
        """The digest of the weights as they are now; whoever gave the module may have trained it on."""
        if self._network is None:
            return published.weights
        # A module of ours is hardly written to; one given in Python may be, in ways that torch does not count.
        return self._network.digest_now(trust_counters=not self.is_custom)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it, and within what calls it there, the weights of a module given in Python are digested once.

        They are digested once more at the end.

        Raises:
            WeightsError: they are others then.
        """
        if not self.is_custom:
            yield
            return
        is_fresh = self._network is None
        network = self.network
        with network.held(network.digest if is_fresh else None):
            yield

    @property
    def pixels(self) -> PixelPath:
        """Those of the recipe; each image asks for them."""
        pixels = self._published().pixels
        return pixels if self._code_of is None else with_code_of(pixels, self._code_of)

    @checked
    def with_pixels(self, pixels: PixelPath) -> Backbone:
        """The same network, with images decoded and resized by the implementations, and to the size, of *pixels*.

        A head needs the pixels that it was trained on, even if newer implementations are the default now.
        """
        sized, origin = self._with_size_of(pixels), functools.partial(Backbone.with_pixels, self, pixels)
        if with_code_of(sized.pixels, pixels) == sized.pixels:
            return sized
        # Both share the network in memory.
        return sized._changed(origin, _load=lambda: sized.network, _code_of=pixels)

    @checked
    def with_input(self, input_size: int | None = None, fit: str | None = None) -> Backbone:
        """The same network on images of another size, or on whole images in place of their centers.

        Args:
            input_size, fit: see `featcache.backbones.input_size.InputSize`.

        Raises:
            UnknownNameError: no such fit.
            UsageError: no such size, or the transform is a callable; or later, the network cannot run at the size.

        Example:
            >>> from featcache.backbones import tiny_backbone
            >>> tiny_backbone().with_input(48).recipe.pixels.transform.resize
            (48, 48)
        """
        if not (wanted := InputSize(input_size, fit)).is_given:
            return self
        sized = PixelPath(wanted.of((self._as_published or self)._standard("input_size and fit")))
        return self.with_pixels(with_size_of(self.pixels, sized))

    def _with_size_of(self, pixels: PixelPath) -> Backbone:
        base = (self._as_published or self).with_runtime(runtime=self.runtime, precision=self.precision)
        wanted = with_size_of(base._published().pixels, pixels)
        for made in (self, base):
            if wanted == made._published().pixels:
                return made
        transform = wanted.transform
        assert isinstance(transform, StandardTransform)  # a callable's is the own one
        cache, known = (None, None) if base._cache is None else base._cache.at(wanted, base._known)
        return base._changed(
            functools.partial(Backbone.with_pixels, self, pixels),
            _load=lambda: base.network.at(transform, base.name),
            _blueprint=lambda: base._blueprint().at(transform, base.name),
            _network=None,
            _cache=cache,
            _known=known,
            _as_published=base,
        )

    def scaled(self) -> Backbone:
        """The same network, with large JPEGs downscaled while they are decoded, which is another recipe.

        Raises:
            UsageError: the transform is a callable, so the size that it needs is unknown.
        """
        self._standard("scaled")
        return self.with_pixels(replace(self.pixels, scaled=SCALED))

    def _standard(self, option: str) -> StandardTransform:
        if isinstance(transform := self._published().pixels.transform, StandardTransform):
            return transform
        raise UsageError(
            f"The transform of {self.name} is a callable, so the size of image that it needs is unknown. Omit {option} "
            "or give a StandardTransform."
        )

    def _published(self) -> Recipe:
        """The recipe at float32 with the code that is the default."""
        if self._network is None and self._known is not None:
            return self._known.recipe
        recipe = Recipe(self.name, self.network.digest, self.network.pixels)
        self._learn(recipe, {})
        return recipe

    @checked
    def resolve_layers(self, layers: Sequence[str]) -> list[Layer]:
        """Expand and check layer names, in network order.

        Args:
            layers: names or globs, see `featcache.backbones.layers.expand`.

        Raises:
            UnknownNameError: no such module.
            UsageError: a layer cannot be pooled as asked.
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

    @property
    def names(self) -> list[str]:
        """Paths of the modules, in network order; nothing is loaded where the cache of recipes knows them."""
        return self.network.names if self._network is not None or self._known is None else self._known.names

    def layers(self) -> list[LayerInfo]:
        """The available layers, in network order, ``pooled`` last. Weights are not needed."""
        return (self._network or self._blueprint()).layer_infos()

    def architecture(self) -> Network:
        """The network with random weights; for a custom backbone its own module, with its weights."""
        return self._blueprint()

    @checked
    def decode(self, data: bytes) -> Decoded:
        """Decode an image file's bytes by the recipe's decoder.

        Args:
            data: as for `featcache.images.decode.decode_rgb`.

        Raises:
            UnusableImageError, ImageMemoryError, UsageError: as there.
        """
        return inputs.decoded(data, self.pixels)

    @checked
    def prepare(self, image: Image | np.ndarray | Decoded, sha256: bytes | None = None) -> np.ndarray:
        """The network's input for one image.

        Args:
            image: any PIL image, an array (`featcache.images.decode.rgb_from_array`), or what `decode` returned.
            sha256: of its bytes; not used here.

        Returns:
            (h, w, 3) uint8 for a published transform, (3, h, w) float32 for a callable.

        Raises:
            UnusableImageError: the image has no reading as RGB or cannot be resized, or the callable returned no
                (3, h, w) tensor.
        """
        transform = self.pixels.transform
        return inputs.made(image, transform if isinstance(transform, StandardTransform) else self.network.custom)

    @checked
    def forward(self, batch: np.ndarray, layers: Sequence[Layer]) -> dict[str, np.ndarray]:
        """One pass in eager torch, in eval and inference mode; `runtimes.passes_for` gives faster ones.

        Args:
            batch: (n, …) what `prepare` gave for n images.
            layers: from `resolve_layers`.

        Returns:
            For each layer's name its activations (n, …) float32.
        """
        inputs.check(batch, self.pixels)
        return self.network.forward(batch, layers, self.precision)

    def reference(self) -> Backbone:
        """The same network in eager torch at float32, its images decoded and resized by the published code.

        Photographs decoded at a fraction of their size have no published transform: their pixels stay those of the
        recipe.
        """
        pixels = self.pixels
        exact = self.with_runtime(runtime="torch", precision="float32")
        return exact.with_pixels(pixels if pixels.scaled is not None else published(pixels))

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
