"""Face verification: detect and align the faces of images, and decide whether two show the same person."""

from featcache.faces.alignment import aligned_backbone
from featcache.faces.detection import Detection, detections
from featcache.faces.evaluation import PairsReport, evaluate
from featcache.faces.extraction import FacesReport, extract
from featcache.faces.training import train
from featcache.faces.verification import Match, embed_faces, verify

__all__ = [
    "Detection",
    "FacesReport",
    "Match",
    "PairsReport",
    "aligned_backbone",
    "detections",
    "embed_faces",
    "evaluate",
    "extract",
    "train",
    "verify",
]
