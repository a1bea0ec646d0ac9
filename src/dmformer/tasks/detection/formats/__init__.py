"""Readers of box annotations in the formats of COCO, Pascal VOC and YOLO."""
