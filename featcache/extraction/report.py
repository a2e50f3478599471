"""What a run of `extract` did, and the ways in which it can end early."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from featcache.core.errors import FeatcacheError
from featcache.core.html import HtmlTable


@dataclass
class ExtractReport(HtmlTable):
    """What a run of `extract` did.

    Attributes:
        store: the store's path.
        space: fingerprint of the recipe.
        backbone: its full name.
        items: images of the source, after ``limit``.
        views: versions of each image that were asked for, view 0 among them.
        computed: image × view rows whose vectors were computed in this run (several layers of a pass count once).
        reused: images whose vectors were all stored already, or that are duplicates.
        quarantined: images that could not be used, or with values that are not finite in a layer or view asked for; the
            finite vectors of such an image are stored, and count as computed.
        left: images not reached before the run ended.
        added, changed, removed: images new to the source or usable for the first time, with other content, no longer
            listed; those that cannot be used do not count.
        ignored: files of the source that are no images.
        unread: those among them that are images in formats that are not read, by ending.
        images_per_second: computed rows per second of reading and computing; loading and converting do not count.
        seconds: from the call to the return.
        runtime: ``torch`` or ``openvino``; None if nothing was computed.
        notes: what was told: what looks doubtful in the source or its labels, and images that are probably
            read too dark, and why the fastest runtime was not used.
        stages: seconds of ``read``, ``hash``, ``decode``, ``forward`` and ``write``, all threads together, and of
            ``prepare``: to load the network, and to convert it and check it where that was not done before.
        quarantine: (URI, reason) of each image in quarantine.
        pending: images that the source lists and that were not done, because of ``limit`` or an interruption.
        from_file: of ``labels`` and ``split``, where a file gives them: how many images it names (``named``), and how
            many got (``set``), lost (``removed``) or have as before (``kept``) their label or split.
        others: the reports of the source's other spaces, where a rerun brought several up to date.
    """

    store: str
    space: str
    backbone: str
    items: int = 0
    views: int = 1
    computed: int = 0
    reused: int = 0
    quarantined: int = 0
    left: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    ignored: int = 0
    images_per_second: float = 0.0
    seconds: float = 0.0
    runtime: str | None = None
    notes: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    quarantine: list[tuple[str, str]] = field(default_factory=list)
    pending: int = 0
    others: list[ExtractReport] = field(default_factory=list)
    unread: dict[str, int] = field(default_factory=dict)
    from_file: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


class ExtractionInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped the run; what was done is sealed, and the same call continues.

    Attributes:
        report: what was done up to there.
    """

    def __init__(self, report: ExtractReport) -> None:
        super().__init__("extraction was interrupted")
        self.report = report


class NothingUsableError(FeatcacheError):
    """Not one image of the source could be used."""

    def __init__(self, report: ExtractReport) -> None:
        uri, reason = report.quarantine[0]
        super().__init__(
            f"None of the {report.items} images could be used (first: {uri}: {reason}). "
            "All are in quarantine; repair them and run the same command again."
        )
        self.report = report
