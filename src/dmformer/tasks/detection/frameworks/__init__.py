"""Frameworks of object detection and instance segmentation, each a `DetectionModel` over any backbone's pyramid."""
