"""BLIP-2's Q-Former for retrieval (arXiv 2301.12597): images and captions in one space, and whether they match."""

from torch import Tensor
from transformers import Blip2Config, Blip2ForImageTextRetrieval

from petx.models._retrieval import QFormerRetrieval
from petx.models.temperature import Temperature

__all__ = ["Blip2Retrieval"]


class Blip2Retrieval(QFormerRetrieval, Blip2ForImageTextRetrieval):
    """transformers' BLIP-2 for retrieval with a learnt ``temperature``, which its checkpoints have not."""

    _keys_to_ignore_on_load_missing = [r"^temperature\."]
    _keep_in_fp32_modules_strict = ["query_tokens", "qformer", "vision_projection", "text_projection", "itm_head"]
    _keep_in_fp32_modules_strict += ["temperature"]

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        self.temperature = Temperature()

    def read(
        self, input_ids: Tensor | None, mask: Tensor | None, queries: Tensor | None, features: Tensor | None
    ) -> Tensor:
        embedded = queries if input_ids is None else self.embeddings(input_ids=input_ids, query_embeds=queries)
        return self.qformer(
            query_embeds=embedded,
            query_length=0 if queries is None else queries.shape[1],
            attention_mask=mask,
            encoder_hidden_states=features,
        ).last_hidden_state
