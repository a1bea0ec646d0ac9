"""Detectors and instance segmenters, each a `DetectionModel` over any backbone's pyramid."""
