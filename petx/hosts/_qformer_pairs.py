"""Retrieval on hosts whose Q-Former reads texts, too, as BLIP-2 does it."""

from typing import Any

import torch
from torch import Tensor, nn

from petx.data.examples import Example
from petx.data.pairs import InstructPairs
from petx.data.task import Task
from petx.data.tokenizers import Tokenizers
from petx.hosts._instructed import WithQFormer
from petx.hosts._retrieval import Inputs, Retrieves, pair_options


class QFormerPairs(Retrieves, WithQFormer):
    """A host whose model is a :class:`petx.models._retrieval.QFormerRetrieval`.

    The queries read the image alone and are compared one by one, the caption is its first token's vector; whether they
    match is told by the queries that read both. A batch of pairs has ``pixel_values``.
    """

    def __init__(self, config: Any, tokenizers: Tokenizers) -> None:
        super().__init__(config, tokenizers)
        self.text_pad = (tokenizers.text if tokenizers.qformer is None else tokenizers.qformer).pad_token_id

    @classmethod
    def dataset(
        cls, spec: Any, examples: list[Example], store: Any, tokenizer: Tokenizers, settings: Any, split: str
    ) -> Task:
        """Captions are read as they are, or all cleaned with ``clean_captions``; the instructions are for the rest."""
        if not spec.retrieval:
            return super().dataset(spec, examples, store, tokenizer, settings, split)
        more: dict[str, Any] = pair_options(settings) | dict(max_target=spec.max_target, metric=spec.metric)
        more |= dict(max_text=min(spec.max_text, settings.max_text), predictions=spec.predictions)
        clean = settings.clean_captions
        return InstructPairs(spec.name, examples, store, tokenizer, templates=(), clean=clean, **more)

    @classmethod
    def full(cls, model: Any) -> list[nn.Parameter]:
        """With the text's way out of the last layer, which captions come by, if the model is for retrieval."""
        if not hasattr(model, "temperature"):
            return super().full(model)
        names = ("qformer", "embeddings", "language_projection")
        parts = [getattr(model, name) for name in names if hasattr(model, name)]
        return [model.query_tokens, *(parameter for part in parts for parameter in part.parameters())]

    def pictures(self, items: list[dict]) -> Inputs:
        return {"pixel_values": torch.stack([item["pixel_values"] for item in items])}

    def seen(self, model: Any, batch: Inputs) -> Inputs:
        return {"features": model.vision_features(batch["pixel_values"])}

    def embed_images(self, model: Any, seen: Inputs) -> Tensor:
        return model.embed_images(seen["features"])

    def match(self, model: Any, seen: Inputs, captions: Inputs) -> Tensor:
        return model.match(seen["features"], captions["input_ids"], captions["attention_mask"])
