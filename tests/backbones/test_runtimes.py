"""OpenVINO gives what eager torch gives, or it is not used; and what is kept of it is not believed unseen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import featcache as fc
from featcache.backbones import Backbone, compute, get, tiny_backbone
from featcache.backbones.runtimes import passes_for
from featcache.backbones.runtimes.openvino import Graph
from featcache.backbones.runtimes.passes import GraphPasses
from featcache.backbones.runtimes.proof import GraphCache, check_agreement
from featcache.core.errors import ConversionError, UnknownNameError, UsageError
from featcache.core.progress import Silent, choose
from featcache.core.recipe import StandardTransform
from featcache.extraction.embed import WORTH_CONVERTING, embed
from tests.backbones.making import relative

TRANSFORM = StandardTransform((32,), (32, 32), "bilinear", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path / "cache"))


def random_images(backbone: Backbone, count: int = 3, seed: int = 0) -> np.ndarray:
    height, width = backbone.network.size
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def made(module: nn.Module, **options: Any) -> Backbone:
    return Backbone.from_module(module, transform=TRANSFORM, name="mine", axes="NCHW", **options)


def cached_files() -> list[Path]:
    from featcache.backbones.recipe_cache import cache_folder

    return sorted((cache_folder() / "graphs").glob("*"))


def test_a_graph_ends_at_the_deepest_layer() -> None:
    backbone = tiny_backbone()
    kinds = {}
    for layer in ("stem:mean", "pooled"):
        layers = backbone.resolve_layers([layer])
        passes = passes_for(backbone, batch_size=1, cores=1)
        passes.ready(random_images(backbone), layers)
        assert isinstance(passes, GraphPasses)
        (graph,) = passes._graphs.values()
        kinds[layer] = [
            op.get_rt_info()["layerType"].astype(str) for op in graph._compiled.get_runtime_model().get_ops()
        ]
    assert kinds["stem:mean"].count("Convolution") == 1
    assert kinds["pooled"].count("Convolution") == 3


class Odd(nn.Module):
    """An operation that OpenVINO does not know, behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i0(self.stem(x).mean((2, 3)))


class Looks(nn.Module):
    """Computes one thing or another, by what it sees."""

    def __init__(self, look: Callable[[torch.Tensor], Any] = lambda mean: mean.sum() > 0) -> None:
        super().__init__()
        self.look = look

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((2, 3))
        return mean * 2 if self.look(mean) else mean * 3


LOOKS: dict[str, Callable[[torch.Tensor], Any]] = {
    "item": lambda mean: mean.sum().item() > 0,
    "equal": lambda mean: torch.equal(mean, mean.abs()),
    "allclose": lambda mean: torch.allclose(mean, mean.abs()),
    "nonzero": lambda mean: (mean > 0).nonzero().shape[0] > 4,
    "where": lambda mean: len(torch.where(mean > 0)[0]) > 4,
    "mask": lambda mean: mean[mean > 0].shape[0] > 4,
    "masked_select": lambda mean: mean.masked_select(mean > 0).numel() > 4,
    "unique": lambda mean: torch.unique(mean.sign()).numel() > 1,
    "unique of rows": lambda mean: torch.unique(mean.sign(), dim=0).shape[0] > 1,
    "tolist": lambda mean: mean.tolist()[0][0] > 0,
    "numpy": lambda mean: mean.detach().cpu().numpy().sum() > 0,
    "asarray": lambda mean: np.asarray(mean).sum() > 0,
    "dlpack": lambda mean: np.from_dlpack(mean).sum() > 0,
    "index": lambda mean: [0, 1, 1][int(mean[0].argmax())],
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_network_that_reads_values_is_not_converted(look: str) -> None:
    """On dark images the graph of a trace would agree with torch; it is wrong on the others."""
    backbone = made(Looks(LOOKS[look]))
    layers, x = backbone.resolve_layers(["pooled"]), random_images(backbone)
    passes = passes_for(backbone)
    passes.ready(x, layers)
    assert (passes.runtime, len(passes.notes)) == ("torch", 1)
    assert "reads values of tensors" in passes.notes[0]


class Harmless(nn.Module):
    """Asks for shapes, counts tokens, and takes rows by number, by a mask that changes no shape, and by halves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] % 2 or len(x) == 0:
            raise ValueError
        tokens = x.flatten(2)[:, :, torch.arange(0, x.shape[2] * 4)].mean(-1)
        tokens[tokens > 0.5] = 0.5
        first, second = x.mean((2, 3)).chunk(2, dim=1)
        return torch.cat([torch.where(tokens > 0, tokens, 2 * tokens), first, second], dim=1)


def test_shapes_may_be_read() -> None:
    backbone = made(Harmless())
    layers, x = backbone.resolve_layers(["pooled"]), random_images(backbone)
    passes = passes_for(backbone)
    passes.ready(x, layers)
    assert (passes.runtime, passes.notes) == ("openvino", [])
    more = random_images(backbone, 5, seed=1)
    assert relative(passes.forward(more, layers)["pooled"], backbone.forward(more, layers)["pooled"]) <= 1e-4


def test_a_graph_is_compared_on_other_images_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's first images are all dark here, and the noise that is traced is no lighter than gray."""
    from featcache.backbones.runtimes import convert as conversion

    # No look is known that goes unseen, so here none is seen.
    monkeypatch.setattr(conversion, "looks_at_values", lambda run: False)
    backbone = made(Looks(lambda mean: mean.max() > 2))
    layers, dark = backbone.resolve_layers(["pooled"]), random_images(backbone) // 8
    passes = passes_for(backbone)
    passes.ready(dark, layers)
    assert passes.runtime == "torch"
    assert "differs from eager torch" in passes.notes[0]
    assert cached_files() == []


@pytest.mark.parametrize(("module", "reason"), [(Odd(), r"aten::special_i0"), (Looks(), "reads values of tensors")])
def test_what_cannot_be_converted_runs_on_torch(module: nn.Module, reason: str) -> None:
    backbone = made(module)
    layers, x = backbone.resolve_layers(["pooled"]), random_images(backbone)
    passes = passes_for(backbone)
    passes.ready(x, layers)
    assert (passes.runtime, passes.parallel) == ("torch", False)
    (note,) = passes.notes
    assert reason in note
    np.testing.assert_array_equal(passes.forward(x, layers)["pooled"], backbone.forward(x, layers)["pooled"])
    with pytest.raises(ConversionError, match=f"module:mine cannot run on OpenVINO.*{reason}.*--runtime torch"):
        passes_for(backbone.with_runtime(runtime="openvino")).ready(x, layers)


def test_the_report_has_the_runtime_and_the_reason(photos: Path, tmp_path: Path) -> None:
    report = fc.extract(photos, tmp_path / "a.fcache", backbone=made(Odd()), progress=False)
    assert (report.computed, report.runtime) == (24, "torch")
    assert "aten::special_i0" in report.notes[0]
    ((record,),) = fc.open(tmp_path / "a.fcache").catalogue.query("t", "SELECT record FROM runs")
    kept = json.loads(record)
    assert kept["runtime"] == "torch"
    assert kept["notes"] == report.notes
    assert set(kept["stages"]) == {"read", "hash", "decode", "forward", "write", "prepare"}
    assert all(seconds >= 0 for seconds in kept["stages"].values())
    assert kept["stages"]["decode"] > 0
    with pytest.raises(ConversionError, match="aten::special_i0"):
        fc.extract(photos, tmp_path / "b.fcache", backbone=made(Odd()).with_runtime(runtime="openvino"), progress=False)


def test_both_runtimes_share_one_space_and_agree(photos: Path, tmp_path: Path) -> None:
    vectors = {}
    for runtime in ("torch", "openvino"):
        store = tmp_path / f"{runtime}.fcache"
        report = fc.extract(
            photos, store, backbone=tiny_backbone().with_runtime(runtime=runtime), layers=["pooled", "body.*:mean_std"],
            progress=False,
        )  # fmt: skip
        assert (report.computed, report.runtime) == (24, runtime)
        vectors[report.space, runtime] = fc.open(store).arrays(layers="pooled+body.*:mean_std")[0]
    assert len({space for space, _ in vectors}) == 1
    first, second = vectors.values()
    assert relative(first, second) <= 1e-4
    again = fc.extract(
        photos, store, backbone=tiny_backbone().with_runtime(runtime="torch"), layers=["pooled"], progress=False
    )
    assert (again.computed, again.runtime) == (0, None)


def test_threads_and_batches_change_nothing(photos: Path, tmp_path: Path) -> None:
    found = []
    for workers, batch in ((1, 1), (3, 5), (2, None)):
        store = tmp_path / f"{workers}.fcache"
        fc.extract(
            photos,
            store,
            backbone=tiny_backbone().with_runtime(runtime="openvino"),
            config=fc.ExtractionConfig(workers=workers, batch_size=batch),
            progress=False,
        )
        opened = fc.open(store)
        found.append((opened.arrays()[0], [item.uri for item in opened.items()]))
    for vectors, uris in found[1:]:
        assert uris == found[0][1]
        assert relative(vectors, found[0][0]) <= 1e-6


class NaNInside(nn.Module):
    """NaN for dark images, before what follows."""

    def __init__(self, follows: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.follows = nn.Conv2d(3, 6, 3), follows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = (x.mean((1, 2, 3), keepdim=True) + 2.4).relu()
        return self.follows(self.stem(x) * (bright / bright)).mean((2, 3))


@pytest.mark.parametrize(
    "follows", [nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.MaxPool2d(2)], ids=lambda m: type(m).__name__
)
def test_an_image_with_nan_inside_goes_to_quarantine(photos: Path, tmp_path: Path, follows: nn.Module) -> None:
    """OpenVINO's ReLU alone would make a number of NaN, and a wrong vector of the image."""
    Image.new("RGB", (40, 40)).save(photos / "cats" / "dark.png")
    transform = StandardTransform((32,), (32, 32), "bilinear", (0.5,) * 3, (0.2,) * 3)
    backbone = Backbone.from_module(NaNInside(follows), transform=transform, name="nan")
    dark = np.zeros((1, 32, 32, 3), np.uint8)
    assert np.isnan(backbone.forward(dark, backbone.resolve_layers(["pooled"]))["pooled"]).all()
    report = fc.extract(
        photos, tmp_path / "s.fcache", backbone=backbone.with_runtime(runtime="openvino"), progress=False
    )
    assert (report.computed, report.quarantined) == (24, 1)
    assert report.quarantine[0][0] == "cats/dark.png"
    assert "not finite" in report.quarantine[0][1]


class Overflows(nn.Module):
    """Infinities for bright images, NaN of them, and what makes a number of NaN."""

    def __init__(self, makes: str, hides: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.makes, self.hides = makes, hides

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.exp(), (x + 1).exp()
        if self.makes == "subtract":
            made = a - b
        elif self.makes == "add":
            made = a + (1 - b)
        elif self.makes == "multiply":
            made = a * (x.abs() - x)
        elif self.makes == "zero":
            made = a * torch.tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1)
        else:
            made = torch.cat([a, 1 - b], dim=3).mean((2, 3), keepdim=True)
        return self.hides(made).mean((2, 3)) + x.mean((2, 3))


@pytest.mark.parametrize("makes", ["subtract", "add", "multiply", "zero", "mean"])
@pytest.mark.parametrize(
    "hides", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Hardsigmoid(), nn.MaxPool2d(1)], ids=lambda m: type(m).__name__
)
def test_nan_of_an_overflow_is_not_hidden(makes: str, hides: nn.Module) -> None:
    """exp(100) is above what float32 holds."""
    transform = StandardTransform((32,), (32, 32), "bilinear", (0.5,) * 3, (0.005,) * 3)
    backbone = Backbone.from_module(Overflows(makes, hides), transform=transform, name="overflow")
    layers = backbone.resolve_layers(["pooled"])
    x = np.repeat(np.array([120, 255, 130, 255], np.uint8), 32 * 32 * 3).reshape(4, 32, 32, 3)
    passes = passes_for(backbone.with_runtime(runtime="openvino"), batch_size=4, cores=1)
    passes.ready(x[::2], layers)
    got, expected = (run(x, layers)["pooled"] for run in (passes.forward, backbone.forward))
    assert np.isnan(expected).any(axis=1).tolist() == [False, True, False, True]
    assert np.isnan(got).any(axis=1).tolist() == [False, True, False, True]


def test_an_image_with_nan_among_the_first_changes_no_runtime(photos: Path, tmp_path: Path) -> None:
    """NaN behind the stem, which torch has whole: of that image alone is nothing compared."""
    Image.new("RGB", (40, 40)).save(photos / "cats" / "a-dark.png")
    transform = StandardTransform((32,), (32, 32), "bilinear", (0.5,) * 3, (0.2,) * 3)
    backbone = Backbone.from_module(NaNInside(nn.ReLU()), transform=transform, name="nan", axes="NCHW")
    report = fc.extract(
        photos, tmp_path / "s.fcache", backbone=backbone, layers=["stem:mean", "pooled"], progress=False
    )
    assert (report.runtime, report.notes, report.computed, report.quarantined) == ("openvino", [], 24, 1)


@pytest.fixture
def kept() -> tuple[Callable[..., GraphPasses], Path]:
    """Makes passes as a new process would, and the file that keeps their graph."""

    def start(backbone: Backbone | None = None) -> GraphPasses:
        fresh = backbone or tiny_backbone()
        passes = passes_for(fresh, batch_size=2, cores=1)
        assert isinstance(passes, GraphPasses)
        passes.ready(random_images(fresh), fresh.resolve_layers(["pooled"]))
        return passes

    assert start().runtime == "openvino"
    (path,) = cached_files()
    return start, path


def conversions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number a conversion from now on. The real one runs; whether it does is what the caller waits for or not."""
    from featcache.backbones.runtimes import convert as conversion

    done: list[int] = []
    inner = conversion.convert
    monkeypatch.setattr(conversion, "convert", lambda *arguments: (done.append(1), inner(*arguments))[1])
    return done


def test_a_kept_graph_is_not_converted_again(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done = conversions(monkeypatch)
    assert kept[0]().runtime == "openvino"
    assert done == []


class Notes(Silent):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def test_a_conversion_is_told_while_it_lasts_and_its_time_afterwards(photos: Path, tmp_path: Path) -> None:
    told = Notes()
    first = fc.extract(photos, tmp_path / "a.fcache", backbone=tiny_backbone(), progress=told)
    assert [text.partition(" …")[0] for text in told.told] == [
        f"Convert {first.backbone} for OpenVINO and check it against PyTorch, once for each set of layers"
    ]
    assert first.stages["prepare"] > 0
    assert not first.notes
    again = fc.extract(photos, tmp_path / "b.fcache", backbone=tiny_backbone(), progress=told)
    assert len(told.told) == 1, "a kept graph is not converted"
    assert again.computed == first.computed


def test_a_network_that_cannot_be_kept_is_told(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path / "file"))  # no folder can be made there, not even by root
    found = fc.extract(photos, tmp_path / "a.fcache", backbone=tiny_backbone(), progress=False)
    (note,) = found.notes
    assert note.startswith(f"The converted network cannot be kept in {tmp_path / 'file'}, so every run")
    assert "FEATCACHE_CACHE" in note
    told = Notes()
    with choose(told):
        images = (sorted(photos.rglob("*.jpg")) * WORTH_CONVERTING)[:WORTH_CONVERTING]
        assert all(one.vector is not None for one in embed(images, tiny_backbone(), ["pooled"]))
    assert told.told[1:] == [note]


@pytest.mark.parametrize("damage", ["empty", "cut", "flip", "garbage", "folder"])
def test_a_damaged_file_is_made_again(kept: Any, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    start, path = kept
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes({"empty": b"", "cut": whole[:middle], "flip": flipped, "garbage": b"\0" * 99}[damage])
    done = conversions(monkeypatch)
    assert start().runtime == "openvino"
    assert done == [1]
    if damage != "folder":
        assert path.read_bytes() != flipped
        start()
        assert done == [1]


@pytest.mark.parametrize("of", ["openvino", "torch", "featcache"])
def test_another_release_converts_for_itself(
    kept: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, of: str
) -> None:
    record = tmp_path / f"{of}-999.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {of}\nVersion: 999\n")
    monkeypatch.syspath_prepend(tmp_path)
    done = conversions(monkeypatch)
    assert kept[0]().runtime == "openvino"
    assert done == [1]


def test_another_processor_converts_for_itself(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The cache folder of a user can move to another machine; this test cannot.
    monkeypatch.setattr(compute, "identity", lambda: "another one")
    done = conversions(monkeypatch)
    kept[0]()
    assert done == [1]


def entry_of(backbone: Backbone) -> GraphCache:
    return GraphCache(backbone.recipe.fingerprint, ("pooled",), (32, 32, 3), backbone.library)


def test_a_wrong_graph_with_a_right_digest_is_found_out(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of other weights, put where this one's is: what torch gave for the kept images contradicts it."""
    from dataclasses import replace

    start, _ = kept
    mine, other = tiny_backbone(), tiny_backbone(1)
    start(other)
    stolen = entry_of(other).read()
    right = entry_of(mine).read()
    assert stolen is not None
    assert right is not None
    entry_of(mine).write(replace(right, graph=stolen.graph))
    done = conversions(monkeypatch)
    passes = start(mine)
    assert done == [1]
    layers, x = mine.resolve_layers(["pooled"]), random_images(mine, seed=5)
    assert relative(passes.forward(x, layers)["pooled"], mine.forward(x, layers)["pooled"]) <= 1e-4
    # All of it wrong, images and answers too: the module at hand contradicts it.
    entry_of(mine).write(stolen)
    start(tiny_backbone())
    assert done == [1, 1]


def test_a_graph_that_disagrees_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that goes wrong in silence: torch is taken, with a note, and nothing is kept."""
    from featcache.backbones.runtimes import convert as conversion

    inner = conversion.convert
    # No network is known that the library of today converts wrongly, so another one's graph stands in for it.
    wrong = tiny_backbone(1)
    wrong_layers = wrong.resolve_layers(["pooled"])
    monkeypatch.setattr(conversion, "convert", lambda network, layers, x: inner(wrong.network, wrong_layers, x))
    backbone = tiny_backbone()
    layers, x = backbone.resolve_layers(["pooled"]), random_images(backbone)
    passes = passes_for(backbone)
    passes.ready(x, layers)
    assert passes.runtime == "torch"
    assert "pooled differs from eager torch" in passes.notes[0]
    assert cached_files() == []
    with pytest.raises(ConversionError, match="differs from eager torch"):
        passes_for(backbone.with_runtime(runtime="openvino")).ready(x, layers)


def test_a_graph_that_cannot_be_read_is_no_graph(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    entry = entry_of(tiny_backbone())
    right = entry.read()
    assert right is not None
    entry.write(replace(right, graph=Graph(b"<net/>", right.graph.weights)))
    done = conversions(monkeypatch)
    assert kept[0]().runtime == "openvino"
    assert done == [1]


@pytest.mark.parametrize("runtime", ["auto", "openvino"])
def test_a_batch_too_large_for_the_memory(photos: Path, tmp_path: Path, runtime: str) -> None:
    """Lack of memory is no fault of the network, and torch would lack it too."""
    with pytest.raises(UsageError, match=r"not enough memory for passes of 10,000,000,000 images.*--batch-size"):
        fc.extract(
            photos,
            tmp_path / "s.fcache",
            backbone=tiny_backbone().with_runtime(runtime=runtime),
            config=fc.ExtractionConfig(batch_size=10**10),
            progress=False,
        )


def test_the_precision_is_requested_from_openvino(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left alone it takes bfloat16 where the processor has it; and what it takes is not always what was asked for."""
    import openvino

    from featcache.backbones.runtimes import openvino as module

    proven = entry_of(tiny_backbone()).read()
    assert proven is not None

    def compiled(precision: str) -> module.CompiledGraph:
        return module.CompiledGraph(proven.graph, ["pooled"], batch_size=1, concurrency=1, cores=1, precision=precision)

    assert compiled("float32")._compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    real = module.core()

    class Float32Only:
        """A processor that has no bfloat16, as OpenVINO treats it: float32 is taken without a word."""

        read_model = staticmethod(real.read_model)

        @staticmethod
        def compile_model(model: Any, device: str, properties: dict[str, str]) -> Any:
            return real.compile_model(model, device, properties | {"INFERENCE_PRECISION_HINT": "f32"})

    # Whether this machine's processor has bfloat16 must not decide what is tested.
    monkeypatch.setattr(module, "core", Float32Only)
    compiled("float32")
    with pytest.raises(ConversionError, match=r"would compute as .*f(loat)?32.*, not as bf16"):
        compiled("bfloat16")


def test_few_images_are_not_worth_a_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    done = conversions(monkeypatch)
    backbone = tiny_backbone()
    layers, x = backbone.resolve_layers(["pooled"]), random_images(backbone)
    passes = passes_for(backbone, convert=False)
    passes.ready(x, layers)
    assert (passes.runtime, passes.notes, done) == ("torch", [], [])


@pytest.mark.parametrize(
    ("got", "message"),
    [
        ([[1.0, 2.0], [3.0, 4.002]], "differs from eager torch by 4.0e-04"),
        ([[1.0, 2.0], [3.0, np.nan]], "not finite"),
        ([[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]], r"shape \(2, 3\)"),
    ],
)
def test_disagreement(got: list[list[float]], message: str) -> None:
    reference = {"pooled": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)}
    assert check_agreement(reference, reference, "float32") == {"pooled": 0.0}
    with pytest.raises(ConversionError, match=message):
        check_agreement({"pooled": np.array(got, np.float32)}, reference, "float32")


def test_agreement_skips_images_with_non_finite_reference() -> None:
    """A graph tells of NaN anywhere on the way, so of all layers at once; torch has it behind the place alone."""
    before, behind = np.ones((3, 4), np.float32), np.ones((3, 2), np.float32)
    behind[1] = np.nan
    lost = before.copy()
    lost[1] = np.nan
    reference = {"before": before, "behind": behind}
    assert check_agreement({"before": lost, "behind": behind}, reference, "float32") == {"before": 0.0, "behind": 0.0}
    assert check_agreement(reference, reference, "float32") == {"before": 0.0, "behind": 0.0}
    also = lost.copy()
    also[2] = np.nan
    with pytest.raises(ConversionError, match="not finite"):
        check_agreement({"before": also, "behind": behind}, reference, "float32")
    with pytest.raises(ConversionError, match="not finite"):
        check_agreement({"before": before, "behind": np.ones((3, 2), np.float32)}, reference, "float32")


def test_agreement_checks_every_image_and_needs_a_finite_one() -> None:
    reference = np.ones((3, 4), np.float32)
    reference[1] = np.nan
    assert check_agreement({"a": reference}, {"a": reference}, "float32") == {"a": 0.0}
    off = reference.copy()
    off[2, 3] += 1e-3
    with pytest.raises(ConversionError, match="differs"):
        check_agreement({"a": off}, {"a": reference}, "float32")
    nothing = np.full((2, 4), np.nan, np.float32)
    with pytest.raises(ConversionError, match="nothing can be compared"):
        check_agreement({"a": nothing}, {"a": nothing}, "float32")
    zeros = np.zeros((1, 4), np.float32)
    assert check_agreement({"a": zeros}, {"a": zeros}, "float32") == {"a": 0.0}
    with pytest.raises(ConversionError, match="differs"):
        check_agreement({"a": zeros + 1e-9}, {"a": zeros}, "float32")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"runtime": "onnx"}, UnknownNameError, "'onnx'"),
        ({"precision": "float16"}, UnknownNameError, "'float16'"),
        ({"runtime": "openvino", "device": "cuda"}, UsageError, "OpenVINO on the CPU, not on cuda"),
    ],
)
def test_unknown_choices(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        get("bundled:efficientnet_lite0", **options)


@pytest.fixture
def without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a user's processor has is not what this machine's has; the answer must not depend on where tests run.
    monkeypatch.setattr(compute, "features", lambda: frozenset({"avx2", "fma"}))


@pytest.mark.usefixtures("without_bfloat16")
def test_bfloat16_where_the_processor_lacks_it(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not compute in bfloat16.*--precision float32"):
        fc.extract(photos, tmp_path / "s.fcache", backbone=get("bundled:efficientnet_lite0", precision="bfloat16"))
    with pytest.raises(UsageError, match="does not compute in bfloat16"):
        tiny_backbone().with_runtime(precision="bfloat16")
    assert not (tmp_path / "s.fcache").exists()


def test_bfloat16_is_a_recipe_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Recipes are compared and nothing is computed, so the processor need not have it.
    monkeypatch.setattr(compute, "features", lambda: frozenset({"avx512_bf16"}))
    plain = tiny_backbone()
    found = {plain.with_runtime(runtime=r, precision="bfloat16").recipe for r in ("auto", "torch", "openvino")}
    assert {(recipe.precision, recipe.runtime) for recipe in found} == {("bfloat16", "torch"), ("bfloat16", "openvino")}
    assert {plain.with_runtime(runtime=r).recipe for r in ("auto", "torch", "openvino")} == {plain.recipe}
    assert plain.recipe.runtime is None
