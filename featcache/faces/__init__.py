"""Face matching: from images to pairs of people, told apart by the vectors of a store."""

from featcache.faces.detection import Detection
from featcache.faces.embedding import embed_faces
from featcache.faces.extraction import FacesReport, extract
from featcache.faces.stored_detections import detections
from featcache.faces.training import train

__all__ = ["Detection", "FacesReport", "detections", "embed_faces", "extract", "train"]
