"""`extract`: from images of people to stored vectors of their aligned faces, each detected and computed once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from featcache.backbones.input_size import InputOptions, InputSize
from featcache.core.arguments import checked
from featcache.core.html import HtmlTable
from featcache.core.progress import Progress, choose
from featcache.extraction.extract import extract as extract_arrays
from featcache.extraction.extract import limited
from featcache.extraction.requests import at_size
from featcache.extraction.source_settings import open_again
from featcache.faces.alignment import DEFAULT_BACKBONE, MIRRORED, AlignedBackbone
from featcache.faces.detection import CENTRE_BOX, FACE, FIRST_PASS, SECOND_PASS, Detector, StoredDetections
from featcache.store import FeatureStore
from featcache.store.folder import has_catalogue

if TYPE_CHECKING:
    from featcache.backbones import Extractor
    from featcache.extraction.report import ExtractReport
    from featcache.extraction.run import ExtractionConfig
    from featcache.images.sources import Source


@dataclass
class FacesReport(HtmlTable):
    """What a run of `extract` did.

    Each image is counted once: ``first_pass + second_pass + centre_box + no_face + unusable == items``, and
    ``computed + reused + quarantined == items``, of which ``quarantined == no_face + unusable``.

    Attributes:
        store: the store's path.
        space: fingerprint of the recipe of the vectors.
        detection: fingerprint of the recipe of the detections.
        backbone: full name.
        items: images of the source, after ``limit``.
        first_pass: images with a vector whose face was found in the image as it is.
        second_pass: images with a vector whose face was found in the image enlarged.
        centre_box: images without a detected face that have a vector of their center, from this run or an earlier one.
        no_face: images without a detected face and without a vector.
        unusable: images that could not be used for another reason.
        several_faces: images with more than one face, of which one was taken.
        detected: images on which this run ran the detector.
        computed: images whose vectors were computed in this run.
        reused: images whose vectors were stored already, or that have the same content as another one.
        quarantined: images that have no vector.
        added, changed, removed: images new to the source, with other content, no longer there; with or without a face.
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


@checked
def extract(
    source: str | Path | Source,
    store: str | Path | FeatureStore,
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
    **pixels: Unpack[InputOptions],
) -> FacesReport:
    """Detect the face of each image, align it, and store its vectors; nothing that is in the store is computed again.

    Faces are detected first, in a run of their own, whose results serve any backbone (see
    `featcache.faces.detection`). An image without a detected face goes into quarantine, unless *centre_box* is on.

    Args:
        source: a folder of images with a subfolder per person, a CSV manifest, or a `Source`.
        store: a store or its path; created if missing.
        backbone: full name, a `Backbone`, or another `Extractor`: computes the vector of an aligned face.
        layers: of the backbone, and ``mirrored``, see `featcache.faces.alignment`.
        centre_box: use the center of the image where no face is found; `featcache.faces.detections` says for which
            images that was done.
        labels, split, name, limit, config, progress, **pixels: as for `featcache.extract`. With ``strict`` an image
            without a face is an error too.

    Raises:
        MissingExtraError: dlib or its files are not installed.
        NothingUsableError: no image could be used, or no face was found in any.
        ExtractionInterrupted: Ctrl-C or SIGTERM, with the report of the run that was interrupted; its results are kept.
        FeatcacheError: as for `featcache.extract`.

    Example:
        >>> fc.faces.extract("people", "people.fcache").computed
        4
    """
    from featcache import backbones

    began = time.monotonic()
    detector = Detector()
    base = at_size(backbones.get(backbone) if isinstance(backbone, str) else backbone, InputSize(**pixels))
    AlignedBackbone(base, detector).resolve_layers(layers)  # raises before the detection if a name is wrong
    path = store.path if isinstance(store, FeatureStore) else Path(store).absolute()
    if isinstance(source, (str, Path)):
        before = FeatureStore.open(path) if has_catalogue(path) else None
        source = open_again(source, before, labels=labels, split=split, name=name)

    def run(extractor: Extractor, layers: Sequence[str], bar: Progress) -> ExtractReport:
        return extract_arrays(source, path, backbone=extractor, layers=layers, limit=limit, config=config, progress=bar)

    with choose(progress) as bar:
        detected = run(detector, [FACE], bar)
        opened = FeatureStore.open(path)
        stored = StoredDetections(opened, detected.space)
        embedded = run(AlignedBackbone(base, detector, centre_box=centre_box, detections=stored), layers, bar)
    report = FacesReport(
        str(path), embedded.space, detected.space, base.name, embedded.items, detected=detected.computed,
        computed=embedded.computed, reused=embedded.reused, quarantined=embedded.quarantined, added=detected.added,
        changed=detected.changed, removed=detected.removed, ignored=detected.ignored, quarantine=embedded.quarantine,
    )  # fmt: skip
    uris = [entry.uri for entry in limited(source.entries(), limit)]
    _count(report, uris, {item.uri: item.sha256 for item in opened.items(source=source.name)}, stored)
    report.seconds = time.monotonic() - began
    report.images_per_second = report.computed / report.seconds
    return report


def _count(report: FacesReport, uris: Sequence[str], sha256_of: dict[str, bytes], stored: StoredDetections) -> None:
    """Count images by how their faces were found."""
    found = stored.of([sha256_of[uri] for uri in uris if uri in sha256_of])
    quarantined = {uri for uri, _ in report.quarantine}
    for uri in uris:
        detection = found.get(sha256_of[uri]) if uri in sha256_of else None
        if detection is None or (uri in quarantined and detection.found != CENTRE_BOX):
            report.unusable += 1
        elif uri in quarantined:
            report.no_face += 1
        elif detection.found == CENTRE_BOX:
            report.centre_box += 1
        elif detection.found == FIRST_PASS:
            report.first_pass += 1
        elif detection.found == SECOND_PASS:
            report.second_pass += 1
        if detection is not None and detection.faces > 1:
            report.several_faces += 1
