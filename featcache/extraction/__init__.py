"""Images into vectors, once: the run that joins a source, a backbone and a store."""

from featcache.extraction.extract_source import DEFAULT_BACKBONE, extract
from featcache.extraction.report import ExtractionInterrupted, ExtractReport, NothingUsableError

__all__ = ["DEFAULT_BACKBONE", "ExtractReport", "ExtractionInterrupted", "NothingUsableError", "extract"]
