"""Annotations of boxes as COCO, Pascal VOC and YOLO write them."""
