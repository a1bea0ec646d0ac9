"""Data types shared by all tasks: images, detections, colours, windows."""
