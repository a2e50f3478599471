"""Every stored vector against the backbone's own published transform and eager torch.

    python scripts/bench/reference.py FOLDER STORE

FOLDER is extracted into STORE (what is there is not computed again). Then each image goes through timm's
own `create_transform` and the network as timm makes it, image by image, and is compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from recording import append

import featcache as fc
from featcache.backbones.families.bundled import spec_of, weights_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("store", type=Path)
    options = parser.parse_args()
    fc.extract(options.folder, options.store, progress=True)
    X, _, items = fc.open(options.store).arrays()
    spec = spec_of("efficientnet_lite0")
    network = timm.create_model(spec.arch, pretrained=False)
    tensors = torch.load(weights_file(spec), weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    network.eval().reset_classifier(0)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=network))
    cosines, errors = [], []
    with torch.inference_mode():
        for vector, item in zip(X, items, strict=True):
            with Image.open(options.folder / item.uri) as image:
                x = transform(ImageOps.exif_transpose(image).convert("RGB"))
            expected = network(x[None])[0].numpy().astype(np.float64)
            got = vector.astype(np.float64)
            cosines.append(got @ expected / np.linalg.norm(got) / np.linalg.norm(expected))
            errors.append(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    append(
        "reference",
        {
            "source": options.folder.name,
            "images": len(cosines),
            "cosine_least": min(cosines),
            "cosine_mean": float(np.mean(cosines)),
            "relative_error_largest": max(errors),
        },
    )


if __name__ == "__main__":
    main()
