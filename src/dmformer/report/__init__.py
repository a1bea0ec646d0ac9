"""Reports of runs: one HTML page each that needs no network, no script and no other file."""

from .classification import Report, write_report
from .segmentation import SegmentationReport, write_segmentation_report

__all__ = ["Report", "SegmentationReport", "write_report", "write_segmentation_report"]
