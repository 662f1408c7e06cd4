"""What tasks of retrieval share: pairs of an image and a caption to train on, all of a split to rank."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.rankings import RankingFile
from petx.data.stores import NpzFeatures
from petx.tasks import _captions
from petx.tasks.base import TaskSpec

PROMPT = "retrieval: "
_SUFFIXES = (".mp4", ".avi", ".mov", ".m4v", ".mpg", ".3gp", ".webm")
MAX_TEXT = 40  # tokens of a caption, prompt included

# For every task of retrieval; its examples are those of captions (_captions.py).
SHARED: dict[str, Any] = dict(prompt=PROMPT, max_text=MAX_TEXT, metric="retrieval", loss="sample", num_beams=1)
SHARED |= dict(predictions=RankingFile(), retrieval=True)


def of_videos(name: str, title: str, read: Any, files: dict[str, str], **more: Any) -> TaskSpec:
    """A task of retrieval of videos, which come as frame features."""
    shared: dict[str, Any] = SHARED | dict(data="video-text", methods=("vlpet",), store=NpzFeatures, files=files)
    shared |= dict(only="videos come as frame features, and PETAL's hosts read the pixels of one image") | more
    return TaskSpec(name, title, read=read, **shared)


def videos(group: str, pairs: Iterable[tuple[str, str]], training: bool) -> Iterator[Example]:
    """Of ``(video, caption)``; the features are in the folder ``group``, under the video's name without its suffix."""
    found = ((Path(video).stem if video.endswith(_SUFFIXES) else video, text.strip()) for video, text in pairs)
    return _captions.examples(((video, (group, video), (caption,)) for video, caption in found), training)
