"""How2QA: questions on instructional videos, in VALUE's JSON lines."""

from petx.tasks._video import questions

TASK = questions("how2qa", "How2QA: questions on instructional videos", videos="how2")
