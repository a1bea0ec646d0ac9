"""Reports of runs: one HTML page each that needs no network, no script and no other file."""

from .classification import Report, write_report
from .detection import DetectionReport, write_detection_report
from .segmentation import SegmentationReport, write_segmentation_report

__all__ = [
    "DetectionReport",
    "Report",
    "SegmentationReport",
    "write_detection_report",
    "write_report",
    "write_segmentation_report",
]
