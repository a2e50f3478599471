"""How fast featcache extracts beside other packages that turn images into vectors.

    python scripts/bench/extract_peers.py FOLDER PYTHON [--thingsvision PYTHON] [--rounds 3]

PYTHON is the interpreter of an environment of its own with ``pip install embetter[vision] img2vec_pytorch``.
thingsvision needs a release of torch that img2vec cannot run with, hence an environment of its own.
FOLDER takes the images (160 JPEGs of 500 × 375) and the store. Each package is used as its documentation shows, on
ResNet-18 with random weights; it runs in a process that stays, so that neither imports nor the making of the network
are timed, and all take turns. `featcache.extract` makes a new store each time, with the graph kept from before.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import extract
import recording

SERVE = """
import sys, time
made = prepare()
print("ready", version, flush=True)
for _ in sys.stdin:
    began = time.perf_counter()
    n = len(run(made))
    print(n / (time.perf_counter() - began), flush=True)
"""

PEERS = {
    "thingsvision": """
import os, sys
from importlib.metadata import version as of
version = of("thingsvision")
sys.stdout, told = sys.stderr, sys.stdout
from thingsvision import get_extractor
from thingsvision.utils.data import DataLoader, ImageDataset
def prepare():
    return get_extractor(model_name="resnet18", source="torchvision", device="cpu", pretrained=False)
def run(extractor):
    data = ImageDataset(root=sys.argv[1], out_path=sys.argv[2], backend=extractor.get_backend(),
                        transforms=extractor.get_transformations())
    batches = DataLoader(dataset=data, batch_size=32, backend=extractor.get_backend())
    return extractor.extract_features(batches=batches, module_name="avgpool", flatten_acts=True)
print = lambda *a, print=print, **k: print(*a, file=told, **k)
""",
    "embetter": """
import functools, glob, sys
from importlib.metadata import version as of
version = of("embetter")
import timm
from embetter.vision import ImageLoader
made = timm.create_model
timm.create_model = lambda name, pretrained, **k: made(name, pretrained=False, **k)  # no weights are downloaded
from embetter.vision import TimmEncoder
from sklearn.pipeline import make_pipeline
def prepare():
    return make_pipeline(ImageLoader(), TimmEncoder(name="resnet18"))
def run(pipeline):
    return pipeline.fit_transform(sorted(glob.glob(sys.argv[1] + "/*.jpg")))
""",
    "img2vec": """
import glob, sys
from importlib.metadata import version as of
version = of("img2vec_pytorch")
from PIL import Image
from img2vec_pytorch import Img2Vec
def prepare():
    return Img2Vec(model="resnet18")
def run(img2vec):
    paths, vectors = sorted(glob.glob(sys.argv[1] + "/*.jpg")), []
    for start in range(0, len(paths), 32):
        vectors.extend(img2vec.get_vec([Image.open(path).convert("RGB") for path in paths[start : start + 32]]))
    return vectors
""",
}


def weights_where_torch_looks(folder: Path) -> None:
    """A file of random weights under the name that torchvision would download."""
    import torch
    import torchvision

    path = folder / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("python", type=Path)
    parser.add_argument("--thingsvision", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    photos = options.folder / "small-160"
    extract.image_files("small", extract.photographs(), photos, 160)
    weights_where_torch_looks(options.folder)
    backbone = extract.network("torchvision:resnet18", options.folder, "float32")
    extract.extract(photos, backbone, options.folder / "bench.fcache")  # converts, where that was not done before
    environment = {**os.environ, "TORCH_HOME": str(options.folder)}
    processes, versions = {}, {}
    with tempfile.TemporaryDirectory() as out:
        for name, code in PEERS.items():
            python = options.thingsvision if name == "thingsvision" else options.python
            if python is None:
                continue
            processes[name] = process = subprocess.Popen(
                [python, "-c", code + SERVE, photos, out],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            )  # fmt: skip
            assert process.stdout is not None
            versions[name] = process.stdout.readline().split()[-1]
        rates: dict[str, list[float]] = {name: [] for name in [*processes, "featcache"]}
        for _ in range(options.rounds):
            for name, process in processes.items():
                assert process.stdin is not None
                assert process.stdout is not None
                print("again", file=process.stdin, flush=True)
                rates[name].append(float(process.stdout.readline()))
            rates["featcache"].append(extract.extract(photos, backbone, options.folder / "bench.fcache")[0])
        for process in processes.values():
            process.communicate()
    recording.append(
        "extract_peers",
        {
            "backbone": "resnet18",
            "images": 160,
            "rounds": options.rounds,
            "peers": versions,
            "images_per_second": {name: round(statistics.median(found), 2) for name, found in rates.items()},
            "times": {
                name: round(statistics.median(a / b for a, b in zip(rates["featcache"], found, strict=True)), 2)
                for name, found in rates.items()
                if name != "featcache"
            },
        },
    )


if __name__ == "__main__":
    main()
