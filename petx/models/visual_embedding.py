"""The visual projector in front of BART and T5, and how its tokens join the text (VL-T5, arXiv 2102.02779)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from petx._checks import check_choice, check_not_negative, check_size, other_layout, refuse_type, told
from petx.errors import UserError

__all__ = ["VisualEmbedding", "join_masks"]


class VisualEmbedding(nn.Module):
    r"""Visual features as tokens of the language model: feature, position, image and object embeddings added up.

    .. math:: \mathrm{norm}(f W_f^\top + b_f) + \mathrm{norm}([box, area] W_p^\top + b_p) + E_{image} + E_{object}

    The object embedding of an image's i-th token is the language model's token embedding number vocab - 1 - i. That
    table is an argument of the call and not registered here, so it is neither counted, saved nor trained twice.

    Args:
        visual_width: F, width of the features.
        hidden_size: d, width of the language model.
        max_images: rows of the image embedding.
        norm: builds a normalisation layer from a width (``nn.LayerNorm`` for BART, an RMS norm for T5).
        init: ``"normal"`` (weights and embeddings N(0, ``init_std``²), zero biases: BART) or ``"default"`` (torch's own
            initialisation, image embedding N(0, 1): T5).
    """

    def __init__(
        self,
        visual_width: int,
        hidden_size: int,
        *,
        max_images: int = 2,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        init: str = "normal",
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        owner = "VisualEmbedding"
        check_size(owner, visual_width=visual_width, hidden_size=hidden_size, max_images=max_images)
        check_choice(owner, "init", init, ("normal", "default"))
        check_not_negative(owner, init_std=init_std)
        if not callable(norm):
            refuse_type(owner, "norm", "a function from a width to a layer", norm)
        self.visual_width, self.init, self.init_std = visual_width, init, init_std
        self.feature = nn.Linear(visual_width, hidden_size)
        self.feature_norm = norm(hidden_size)
        self.position = nn.Linear(5, hidden_size)
        self.position_norm = norm(hidden_size)
        self.image_order = nn.Embedding(max_images, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise every layer as ``init`` says."""
        for layer in self.children():
            self.reset_layer(layer)

    def reset_layer(self, layer: nn.Module) -> None:
        """Initialise one of this module's layers, through torch.nn.init, which transformers guards: what was loaded
        from a checkpoint stays."""
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            if self.init == "normal":
                nn.init.normal_(layer.weight, std=self.init_std)
                nn.init.zeros_(layer.bias)
            else:
                nn.init.uniform_(layer.weight, -bound, bound)
                nn.init.uniform_(layer.bias, -bound, bound)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=self.init_std if self.init == "normal" else 1.0)
        else:
            norm: Any = layer
            nn.init.ones_(norm.weight)
            if getattr(norm, "bias", None) is not None:
                nn.init.zeros_(norm.bias)

    def forward(
        self, features: Tensor, token_embedding: Tensor, boxes: Tensor | None = None, image_ids: Tensor | None = None
    ) -> Tensor:
        """Visual tokens ``[B, V, d]``.

        Args:
            features: ``[B, V, F]``, floating.
            token_embedding: ``[vocab, d]``, the language model's token embedding.
            boxes: ``[B, V, 4]`` corners (x1, y1, x2, y2) in [0, 1]; zeros if None (grid features have no boxes).
            image_ids: ``[B, V]`` integers below ``max_images``, the image that a token belongs to; zeros if None.

        Raises UserError naming the argument, what came and what was wanted.
        """
        self._check(features, token_embedding, boxes, image_ids)
        dtype = self.feature.weight.dtype
        length = features.shape[1]
        boxes = features.new_zeros(1, 1, 4, dtype=dtype) if boxes is None else boxes.to(dtype)
        area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        position = self.position(torch.cat([boxes, area.unsqueeze(-1)], dim=-1))
        out = self.feature_norm(self.feature(features.to(dtype))) + self.position_norm(position)
        if image_ids is None:
            order = torch.arange(length, device=features.device)
            out = out + self.image_order.weight[0]
        else:
            same = image_ids.unsqueeze(2) == image_ids.unsqueeze(1)  # [B, V, V]
            order = same.tril(-1).sum(-1)  # objects are counted within their image
            out = out + self.image_order(image_ids)
        return out + nn.functional.embedding(token_embedding.shape[0] - 1 - order, token_embedding)

    def _check(self, features: Tensor, token_embedding: Tensor, boxes: Tensor | None, image_ids: Tensor | None) -> None:
        given = dict(visual_features=features, token_embedding=token_embedding, boxes=boxes, image_ids=image_ids)
        _check_tensors(given, optional=("boxes", "image_ids"))
        if features.dim() != 3 or features.shape[-1] != self.visual_width or not features.is_floating_point():
            raise UserError(
                f"visual_features must be floating [batch, tokens, {self.visual_width}] (the model's visual_width), "
                f"got {features.dtype} {list(features.shape)}"
            )
        batch, length, _ = features.shape
        width = self.feature.out_features
        if token_embedding.dim() != 2 or token_embedding.shape[1] != width:
            raise UserError(f"token_embedding must be [vocabulary, {width}], got {list(token_embedding.shape)}")
        if length > token_embedding.shape[0]:
            raise UserError(
                f"visual_features has {length} tokens, but the object embeddings are the last rows of a vocabulary of "
                f"{token_embedding.shape[0]}"
            )
        if boxes is not None and list(boxes.shape) != [batch, length, 4]:
            raise UserError(f"boxes must be {[batch, length, 4]}, got {list(boxes.shape)}")
        if image_ids is not None and list(image_ids.shape) != [batch, length]:
            raise UserError(f"image_ids must be {[batch, length]}, got {list(image_ids.shape)}")
        if image_ids is not None:
            self._check_order(image_ids)

    def _check_order(self, image_ids: Tensor) -> None:
        count = self.image_order.num_embeddings
        if image_ids.dtype not in (torch.int64, torch.int32):
            raise UserError(f"image_ids must be integers, int64 or int32, got {image_ids.dtype}")
        # On a GPU torch's own assertion says so, without a synchronisation here.
        if image_ids.device.type == "cpu" and image_ids.numel() and not torch.compiler.is_compiling():
            lowest, highest = (int(end) for end in image_ids.aminmax())
            if lowest < 0 or highest >= count:
                raise UserError(f"image_ids must be below max_images={count}, got {lowest} to {highest}")


def _check_tensors(given: dict[str, Any], optional: Sequence[str]) -> None:
    for name, value in given.items():
        if not isinstance(value, Tensor) and not (value is None and name in optional):
            raise UserError(f"{name} must be a tensor{' or None' if name in optional else ''}, got {told(value)}")
        if value is not None and (layout := other_layout(value)):
            raise UserError(f"{name} must be a dense tensor, got a {layout} one")


def join_masks(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    visual_features: Tensor,
    visual_attention_mask: Tensor | None,
) -> Tensor | None:
    """Mask over [text; vision] ``[B, L + V]``: ones for a part whose mask is None; None if both are.

    Raises UserError for a mask or features of another shape.
    """
    given = dict(input_ids=input_ids, attention_mask=attention_mask, visual_features=visual_features)
    given["visual_attention_mask"] = visual_attention_mask
    _check_tensors(given, optional=("attention_mask", "visual_attention_mask"))
    if input_ids.dim() != 2:
        raise UserError(f"input_ids must be [batch, tokens], got {list(input_ids.shape)}")
    if visual_features.dim() < 2:
        raise UserError(f"visual_features must be [batch, tokens, width], got {list(visual_features.shape)}")
    batch, length = input_ids.shape
    if visual_features.shape[0] != batch:
        raise UserError(f"visual_features must have input_ids' batch size {batch}, got {list(visual_features.shape)}")
    parts = {
        "attention_mask": (attention_mask, [batch, length]),
        "visual_attention_mask": (visual_attention_mask, list(visual_features.shape[:2])),
    }
    for name, (mask, shape) in parts.items():
        if mask is not None and list(mask.shape) != shape:
            raise UserError(f"{name} must be {shape}, got {list(mask.shape)}")
    if attention_mask is None and visual_attention_mask is None:
        return None
    masks = [input_ids.new_ones(shape) if mask is None else mask.long() for mask, shape in parts.values()]
    return torch.cat(masks, dim=1)
