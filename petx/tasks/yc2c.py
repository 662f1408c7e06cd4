"""YC2C: captions of cooking videos, in VALUE's JSON lines."""

from petx.tasks._video import captions

TASK = captions("yc2c", "YC2C: captions of cooking videos", videos="yc2", spans=False)
