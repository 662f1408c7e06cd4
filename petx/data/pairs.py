"""A task of retrieval as a data set: an image and one of its captions to train on, and either alone to be ranked."""

from collections.abc import Callable
from typing import Any

import torch

from petx.data.instructions import InstructTask, plain
from petx.data.task import Task

RETRIEVAL = "retrieval"  # what items of a pair have as their ``loss``

__all__ = ["RETRIEVAL", "InstructPairs", "Pairs"]


class Pairs(Task):
    """A :class:`petx.data.task.Task` of retrieval for hosts that read features; captions are its references.

    Args:
        matching: weight of the matching loss beside the contrastive one; 0 is none.
        rerank: candidates that matching ranks again, the most similar ones; 0 ranks by similarity alone.
    """

    retrieval = True

    def __init__(self, *args: Any, matching: float, rerank: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.matching, self.rerank = matching, rerank

    def item_of(self, key: Any, look: Callable[[Any], tuple]) -> dict[str, Any]:
        example, caption, _, draw = self.drawn(key)
        of = {"image": example.images, "matching": self.matching, "loss": RETRIEVAL}
        return self.picture(example, draw, look) | self.caption(caption) | of

    def picture(
        self, example: Any, draw: str = "", look: Callable[[Any], tuple] | None = None
    ) -> dict[str, torch.Tensor]:
        """The image's part of an item: its features, and the prompt alone, beside which an encoder reads it."""
        prompt = {"prompt_ids": self.encode(self.prompt, self.max_text)}
        return self.visual(example.images, look or self.features) | prompt

    def caption(self, text: str) -> dict[str, torch.Tensor]:
        """The caption's part of an item."""
        return {"input_ids": self.encode(self.prompt + text, self.max_text)}


class InstructPairs(Pairs, InstructTask):
    """:class:`Pairs` for hosts with a Q-Former, which reads captions with its own tokenizer.

    ``clean``: captions lose capitals and punctuation (:func:`petx.data.instructions.plain`), evaluated ones too.
    """

    def picture(
        self, example: Any, draw: str = "", look: Callable[[Any], tuple] | None = None
    ) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels(example, draw)}

    def caption(self, text: str) -> dict[str, torch.Tensor]:
        return {"input_ids": self.encode(plain(text) if self.clean else text, self.max_text)}

    def _encode(self, text: str, limit: int | None = None, tokenizer: Any = None) -> torch.Tensor:
        """The first token stands for the whole text: the tokenizer's own for that, or the one that begins a text."""
        reads = self.tokenizers.text if self.tokenizers.qformer is None else self.tokenizers.qformer
        tokens = reads(text)["input_ids"]
        first = reads.bos_token_id if reads.cls_token_id is None else reads.cls_token_id
        if first is not None and tokens[:1] != [first]:
            tokens = [first, *tokens]
        return torch.tensor(tokens[:limit], dtype=torch.long)
