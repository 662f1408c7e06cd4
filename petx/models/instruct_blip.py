"""InstructBLIP that reads several instructions per image, and one that reads image features in place of pixels.

InstructBLIP (arXiv 2305.06500): a frozen vision tower, a Q-Former whose queries read the image and the instruction,
and a language model that reads the queries' outputs as soft tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, InstructBlipConfig, InstructBlipForConditionalGeneration, PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from petx._checks import check_size, is_integer, other_layout, refuse, refuse_type, told
from petx.errors import UserError
from petx.models._retrieval import Head, QFormerRetrieval
from petx.models.instructions import aggregate_instructions
from petx.models.temperature import Temperature

__all__ = ["FeatureInstructBlip", "FeatureInstructBlipConfig", "FeatureVision", "InstructBlip", "feature_config"]


class InstructBlip(QFormerRetrieval, InstructBlipForConditionalGeneration):
    """transformers' InstructBLIP; ``qformer_input_ids [B, I, L]`` are I instructions per image, one Q-Former pass each.

    Their query outputs are projected and joined by :func:`petx.models.aggregate_instructions` with ``aggregation``
    (``"mean"`` or ``"attention_score"``). With ``[B, L]`` it is the plain model. Weights are those of
    ``InstructBlipForConditionalGeneration``, whose checkpoints load. If they are loaded in half precision, Q-Former,
    queries and projection stay in float32.

    With ``retrieval_width`` in its configuration it has what BLIP-2 has for retrieval, new: ``vision_projection`` and
    ``text_projection`` to that width, ``itm_head`` and ``temperature``.
    """

    aggregation = "mean"
    _keys_to_ignore_on_load_missing = [r"^(vision_projection|text_projection|itm_head|temperature)\."]  # new, not lost
    _keep_in_fp32_modules_strict = ["query_tokens", "qformer", "language_projection"]
    _keep_in_fp32_modules_strict += ["vision_projection", "text_projection", "itm_head", "temperature"]

    def __init__(self, config: InstructBlipConfig) -> None:
        super().__init__(config)
        self.qformer.register_forward_pre_hook(_as_the_qformer_reads, with_kwargs=True)
        qformer: Any = config.qformer_config
        width = getattr(config, "retrieval_width", 0)
        if width:
            self.vision_projection = Head(qformer.hidden_size, width)
            self.text_projection = Head(qformer.hidden_size, width)
            self.itm_head = Head(qformer.hidden_size, 2)
            self.temperature = Temperature()

    def read(
        self, input_ids: Tensor | None, mask: Tensor | None, queries: Tensor | None, features: Tensor | None
    ) -> Tensor:
        return self.qformer(
            input_ids=input_ids, attention_mask=mask, query_embeds=queries, encoder_hidden_states=features
        ).last_hidden_state

    def get_image_features(
        self,
        pixel_values: Tensor,
        qformer_input_ids: Tensor,
        qformer_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the base's; of several instructions, ``qformer_outputs`` are the first one's."""
        if not isinstance(qformer_input_ids, Tensor) or qformer_input_ids.dim() not in (2, 3):
            raise UserError(f"qformer_input_ids must be [B, L], or [B, instructions, L], got {told(qformer_input_ids)}")
        if qformer_attention_mask is not None and qformer_attention_mask.shape != qformer_input_ids.shape:
            wanted, got = list(qformer_input_ids.shape), list(qformer_attention_mask.shape)
            raise UserError(f"qformer_attention_mask must be {wanted} as qformer_input_ids, got {got}")
        if qformer_input_ids.dim() == 2:
            return super().get_image_features(pixel_values, qformer_input_ids, qformer_attention_mask, **kwargs)
        masks = torch.ones_like(qformer_input_ids) if qformer_attention_mask is None else qformer_attention_mask
        kwargs["return_dict"] = True
        passes = [
            super(InstructBlip, self).get_image_features(pixel_values, ids, mask, **kwargs)
            for ids, mask in zip(qformer_input_ids.unbind(1), masks.unbind(1), strict=True)
        ]
        first = passes[0]
        if len(passes) > 1:
            first.pooler_output = aggregate_instructions([one.pooler_output for one in passes], method=self.aggregation)
        return first


def _as_the_qformer_reads(
    qformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    features = kwargs.get("encoder_hidden_states")
    if features is None:  # a text by itself
        return args, kwargs
    return args, kwargs | {"encoder_hidden_states": features.to(qformer.embeddings.layernorm.weight.dtype)}


class FeatureInstructBlipConfig(InstructBlipConfig):
    """InstructBLIP's configuration; ``vision_config.hidden_size`` is the width of the features."""

    model_type = "feature_instructblip"


class FeatureVision(nn.Module):
    """In place of the vision tower: ``pixel_values`` are features ``[B, V, width]``, standardised by channel.

    ``mean`` and ``std`` (``[width]``, 0 and 1 at first) are saved with the model and not trained.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        check_size("FeatureVision", width=width)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """The standardised features ``[B, V, width]``; ``pooler_output`` is their mean over V."""
        if not isinstance(pixel_values, Tensor):
            raise UserError(
                f"pixel_values must be features [batch, tokens, {len(self.mean)}], got {told(pixel_values)}"
            )
        if layout := other_layout(pixel_values):
            raise UserError(f"pixel_values must be a dense tensor, got a {layout} one")
        if pixel_values.dim() != 3 or pixel_values.shape[-1] != len(self.mean):
            raise UserError(
                f"pixel_values must be features [batch, tokens, {len(self.mean)}], got {list(pixel_values.shape)}"
            )
        features = (pixel_values.to(self.mean.dtype) - self.mean) / self.std
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=features.mean(1))


class FeatureInstructBlip(InstructBlip):
    """InstructBLIP without a vision tower: ``pixel_values`` are image features ``[B, V, vision_config.hidden_size]``.

    The query tokens begin at N(0, ``initializer_range``²); transformers leaves them at zero, which keeps all
    queries of an untrained Q-Former equal.
    """

    config_class = FeatureInstructBlipConfig

    def __init__(self, config: FeatureInstructBlipConfig) -> None:
        super().__init__(config)
        vision: Any = config.vision_config
        self.vision_model = FeatureVision(vision.hidden_size)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FeatureVision):
            nn.init.zeros_(module.mean)
            nn.init.ones_(module.std)
        if isinstance(module, FeatureInstructBlip):
            qformer: Any = self.config.qformer_config
            nn.init.normal_(module.query_tokens, std=qformer.initializer_range)


def feature_config(
    width: int, text_config: PretrainedConfig, *, queries: int, image_token: int, **qformer: Any
) -> FeatureInstructBlipConfig:
    """:class:`FeatureInstructBlipConfig` for features of ``width``; ``qformer`` are fields of its Q-Former.

    ``image_token`` is the id that the language model's input holds ``queries`` times, in place of the soft tokens.
    """
    check_size("feature_config", width=width, queries=queries)
    if not is_integer(image_token) or image_token < 0:
        refuse("feature_config", "image_token", "a token's id, an integer of at least 0", image_token)
    if not isinstance(text_config, PretrainedConfig):
        refuse_type("feature_config", "text_config", "a configuration of transformers", text_config)
    return FeatureInstructBlipConfig(
        # Layers of a vision tower are never built; this is only the width of what the Q-Former reads.
        vision_config=dict(hidden_size=width, num_hidden_layers=0, num_attention_heads=1, image_size=1, patch_size=1),
        qformer_config=qformer,
        text_config=text_config.to_dict(),
        num_query_tokens=queries,
        image_token_index=image_token,
    )


AutoConfig.register(FeatureInstructBlipConfig.model_type, FeatureInstructBlipConfig, exist_ok=True)
