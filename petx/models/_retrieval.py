"""What hosts have for retrieval beside themselves: projections to a common space, and reading for it."""

from typing import Any

import torch
from torch import Tensor, nn

from petx.models.temperature import Temperature


class Head(nn.Linear):
    """A linear layer that begins as torch's, whatever rule its model has for linear layers."""


def reset_if_head(module: nn.Module) -> bool:
    """Give a :class:`Head` or :class:`Temperature` its initial values, through torch.nn.init, which transformers guards
    so that what was loaded stays; whether ``module`` is one."""
    if isinstance(module, Head | Temperature):
        module.reset_parameters()
        return True
    return False


def normalized(vectors: Tensor) -> Tensor:
    return nn.functional.normalize(vectors.float(), dim=-1)


class QFormerRetrieval:
    """Mixin of a model with a Q-Former that reads texts, too: BLIP-2's three ways of reading an image and a caption.

    The model has ``vision_model``, ``query_tokens [1, Q, d]``, ``vision_projection`` and ``text_projection`` (d to D),
    ``itm_head`` (d to 2) and ``temperature``, and defines :meth:`read`.
    """

    vision_model: Any
    query_tokens: Any
    vision_projection: Any
    text_projection: Any
    itm_head: Any

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not reset_if_head(module):
            super()._init_weights(module)  # type: ignore[misc]  # of transformers, behind the mixin

    def read(
        self, input_ids: Tensor | None, mask: Tensor | None, queries: Tensor | None, features: Tensor | None
    ) -> Tensor:
        """The Q-Former's output ``[B, Q + L, d]`` on [queries; text], either of which may be None."""
        raise NotImplementedError

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """What the Q-Former reads of images: ``[B, P, F]``."""
        return self.vision_model(pixel_values=pixel_values).last_hidden_state

    def embed_images(self, features: Tensor) -> Tensor:
        """Of ``features [B, P, F]``, a unit vector for each query: ``[B, Q, D]``, float32."""
        queries = self.query_tokens.expand(len(features), -1, -1)
        return normalized(_as(self.vision_projection, self.read(None, None, queries, features)))

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Of texts ``[B, L]``, the first token's unit vector: ``[B, D]``, float32."""
        return normalized(_as(self.text_projection, self.read(input_ids, attention_mask, None, None)[:, 0]))

    def match(self, features: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits ``[B, 2]`` of images and texts not belonging together, and belonging: the queries' mean."""
        queries = self.query_tokens.expand(len(features), -1, -1)
        mask = torch.cat([attention_mask.new_ones(queries.shape[:2]), attention_mask], dim=1)
        read = self.read(input_ids, mask, queries, features)[:, : queries.shape[1]]
        return _as(self.itm_head, read).mean(1)


def _as(head: Any, hidden: Tensor) -> Tensor:
    return head(hidden.to(next(head.parameters()).dtype))
