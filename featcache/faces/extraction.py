"""`extract`: images of people into vectors of their aligned faces, each looked for and computed once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.core.html import HtmlTable
from featcache.core.progress import Progress, choose
from featcache.extraction.extract import extract as extract_arrays
from featcache.extraction.extract import limited
from featcache.extraction.report import ExtractReport
from featcache.extraction.run import ExtractionConfig
from featcache.faces.alignment import DEFAULT_BACKBONE, MIRRORED, AlignedBackbone
from featcache.faces.detection import CENTRE_BOX, FACE, FIRST_PASS, SECOND_PASS, Detector, StoredDetections
from featcache.store import FeatureStore

if TYPE_CHECKING:
    from featcache.backbones import Extractor
    from featcache.images.sources import Source


@dataclass
class FacesReport(HtmlTable):
    """What a run of `extract` did.

    Each image is counted once: ``first_pass + second_pass + centre_box + no_face + unusable == items``, and
    ``computed + reused + quarantined == items``, of which ``quarantined == no_face + unusable``.

    Attributes:
        store: the store's path.
        space: fingerprint of the recipe of the vectors.
        detection: fingerprint of the detection.
        backbone: full name.
        items: images of the source, after ``limit``.
        first_pass: images with a vector whose face was found in the image as it is.
        second_pass: images with a vector whose face was found in the image enlarged.
        centre_box: images in which no face was found and whose middle has a vector, from this run or an earlier one.
        no_face: images in which no face was found and that have no vector.
        unusable: images that could not be used for another reason.
        several_faces: images in which more than one face was found, of which one was taken.
        detected: images in which this run looked for faces.
        computed: images whose vectors were computed in this run.
        reused: images whose vectors were there already, or that have the same content as another one.
        quarantined: images that have no vector.
        added, changed, removed: images new to the source, with other content, no longer there.
        ignored: files of the source that are no images.
        images_per_second: images computed over ``seconds``.
        seconds: from the call to the return.
        quarantine: (URI, reason) of each image that has no vector.
    """

    store: str
    space: str
    detection: str
    backbone: str
    items: int = 0
    first_pass: int = 0
    second_pass: int = 0
    centre_box: int = 0
    no_face: int = 0
    unusable: int = 0
    several_faces: int = 0
    detected: int = 0
    computed: int = 0
    reused: int = 0
    quarantined: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    ignored: int = 0
    images_per_second: float = 0.0
    seconds: float = 0.0
    quarantine: list[tuple[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


def extract(
    source: str | Path | Source,
    store: str | Path,
    *,
    backbone: str | Extractor = DEFAULT_BACKBONE,
    layers: Sequence[str] = ("pooled", MIRRORED),
    centre_box: bool = False,
    labels: str | Path | None = None,
    split: str | Path | None = None,
    name: str | None = None,
    limit: int | None = None,
    config: ExtractionConfig | None = None,
    progress: Progress | bool | None = None,
) -> FacesReport:
    """Find the face of each image, align it, and keep its vectors; what is in the store already is not done again.

    Faces are looked for first, in a run of its own that any backbone later shares (see `featcache.faces.detection`).
    An image in which none is found goes into quarantine, unless *centre_box* is on.

    Args:
        source: a folder of images, one folder a person, a CSV manifest, or a `Source`.
        store: the store's folder, made where there is none.
        backbone: full name, a `Backbone`, or another `Extractor`: what turns an aligned face into a vector.
        layers: as of the backbone, and ``mirrored``, see `featcache.faces.alignment`.
        centre_box: where no face is found, take the box in the middle. `featcache.faces.detections` tells of which
            images that was done.
        labels, split, name, limit, config, progress: as for `featcache.extract`. With ``strict`` an image without a
            face is an error too.

    Raises:
        MissingExtraError: dlib or its files are not installed.
        NothingUsableError: no image could be used, or no face was found in any.
        ExtractionInterrupted: Ctrl-C or SIGTERM, with the report of that one of the two runs; what was done is kept.
        FeatcacheError: as for `featcache.extract`.
    """
    from featcache import backbones
    from featcache.images.sources import open_source

    began = time.monotonic()
    detector = Detector()
    base = backbones.get(backbone) if isinstance(backbone, str) else backbone
    AlignedBackbone(base, detector).resolve_layers(layers)  # a wrong name should not wait for the detection
    if isinstance(source, (str, Path)):
        source = open_source(source, labels=labels, split=split, name=name)

    def run(extractor: Extractor, layers: Sequence[str], shown: Progress) -> ExtractReport:
        return extract_arrays(
            source, store, backbone=extractor, layers=layers, limit=limit, config=config, progress=shown
        )

    with choose(progress) as shown:
        looked = run(detector, [FACE], shown)
        opened = FeatureStore.open(store)
        stored = StoredDetections(opened, looked.space)
        embedded = run(AlignedBackbone(base, detector, centre_box=centre_box, detections=stored), layers, shown)
    report = FacesReport(
        str(store), embedded.space, looked.space, base.name, embedded.items, detected=looked.computed,
        computed=embedded.computed, reused=embedded.reused, quarantined=embedded.quarantined, added=looked.added,
        changed=looked.changed, removed=looked.removed, ignored=looked.ignored, quarantine=embedded.quarantine,
    )  # fmt: skip
    uris = [entry.uri for entry in limited(source.entries(), limit)]
    _count(report, uris, {item.uri: item.sha256 for item in opened.items(source=source.name)}, stored)
    report.seconds = time.monotonic() - began
    report.images_per_second = report.computed / report.seconds
    return report


def _count(report: FacesReport, uris: Sequence[str], sha256_of: dict[str, bytes], stored: StoredDetections) -> None:
    """Count how the faces were found, image by image."""
    found = stored.of([sha256_of[uri] for uri in uris if uri in sha256_of])
    left_out = {uri for uri, _ in report.quarantine}
    for uri in uris:
        detection = found.get(sha256_of[uri]) if uri in sha256_of else None
        if detection is None or (uri in left_out and detection.found != CENTRE_BOX):
            report.unusable += 1
        elif uri in left_out:
            report.no_face += 1
        elif detection.found == CENTRE_BOX:
            report.centre_box += 1
        elif detection.found == FIRST_PASS:
            report.first_pass += 1
        elif detection.found == SECOND_PASS:
            report.second_pass += 1
        if detection is not None and detection.faces > 1:
            report.several_faces += 1
