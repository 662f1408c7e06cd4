"""BLIP-2 for retrieval: the Q-Former of its first stage, without a language model."""

from pathlib import Path
from typing import Any

from torch import nn

from petx import tasks
from petx.data.tokenizers import Tokenizers
from petx.errors import UserError
from petx.hosts._qformer_pairs import QFormerPairs
from petx.models import Blip2Retrieval


class Blip2RetrievalHost(QFormerPairs):
    """BLIP-2's checkpoints for retrieval (``Blip2ForImageTextRetrieval``), which generate nothing."""

    model_types = ("blip-2",)
    architectures = ("Blip2ForImageTextRetrieval",)
    words, order = "BLIP-2 for retrieval", 3
    model_class = Blip2Retrieval

    def __init__(self, config: Any, tokenizers: Tokenizers) -> None:
        self.pad = self.text_pad = tokenizers.pad_token_id  # no language model: no image token, no decoder

    @classmethod
    def check(cls, settings: Any) -> None:
        super().check(settings)
        retrieved = tasks.retrieval(settings)
        others = [name for name in settings.tasks if name not in retrieved] or ([] if retrieved else [settings.data])
        if others:
            raise UserError(
                f"host: {settings.host!r} is BLIP-2 for retrieval and generates nothing, as {others[0]} needs"
            )

    @classmethod
    def pretrained_tokenizers(cls, settings: Any) -> Tokenizers:
        return cls.tokenizers(settings.host)

    @classmethod
    def everything(cls, model: Any) -> list[nn.Parameter]:
        return cls.full(model)

    @classmethod
    def question_item(
        cls, source: Any, settings: Any, tokenizer: Tokenizers, image: str | Path, question: str
    ) -> dict[str, Any]:
        raise UserError("BLIP-2 for retrieval answers no questions")


HOST = Blip2RetrievalHost
