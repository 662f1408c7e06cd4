"""TVC: captions of clips of television series, in VALUE's JSON lines."""

from petx.tasks._video import captions

TASK = captions("tvc", "TVC: captions of clips of television series", videos="tv")
