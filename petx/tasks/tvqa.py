"""TVQA: questions on clips of television series, in VALUE's JSON lines."""

from petx.tasks._video import questions

TASK = questions("tvqa", "TVQA: questions on clips of television series", videos="tv")
