"""Object detection and instance segmentation: a box, a class and perhaps a mask for every object."""
