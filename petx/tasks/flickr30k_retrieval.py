"""Retrieval of Flickr30k's images and captions, in the files of its captions: LAVIS's or Karpathy's."""

import dataclasses

from petx.tasks import flickr30k
from petx.tasks._retrieval import SHARED

TITLE = "Flickr30k: images and their captions ranked for one another, recall"
TASK = dataclasses.replace(flickr30k.TASK, name="flickr30k_retrieval", title=TITLE, **SHARED)
