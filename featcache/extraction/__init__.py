"""Images into vectors, once: the run that joins a source, a backbone and a store."""

from featcache.extraction.report import ExtractionInterrupted, ExtractReport, NothingUsableError

__all__ = ["ExtractReport", "ExtractionInterrupted", "NothingUsableError"]
