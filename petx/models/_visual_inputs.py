"""What VL-BART and VL-T5 share: forward and generate take visual inputs and hand the encoder's output on."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from petx.errors import UserError
from petx.models._retrieval import Head, normalized, reset_if_head
from petx.models.temperature import Temperature
from petx.models.visual_embedding import join_masks

VISUAL = ("visual_features", "boxes", "image_ids", "visual_attention_mask")


if TYPE_CHECKING:
    from transformers import GenerationMixin, PreTrainedModel

    from petx.models.visual_embedding import VisualEmbedding

    class _Host(PreTrainedModel, GenerationMixin):
        visual_embedding: VisualEmbedding

        def encode_joint(
            self, encoder: Any, input_ids: Tensor, vision: Tensor, mask: Tensor | None, **kwargs: Any
        ) -> BaseModelOutput: ...

else:
    _Host = object


class VisualInputs(_Host):
    """Mixin in front of a transformers encoder-decoder; the class after it defines ``encode_joint``.

    The encoder runs on [text; vision] here, and the host's own forward and generate receive its output and the joined
    mask: nothing of theirs is rewritten. A module assigned to ``soft_prompt``, whose call gives learnt tokens
    ``[P, d]``, makes that [text; prompt; vision] (prompt tuning). One assigned to ``task_adapters`` has its ``task``
    set to that of the pass (HyperFormer).
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.register_module("soft_prompt", None)
        self.register_module("task_adapters", None)
        if config.retrieval_width:
            self.vision_projection = Head(config.d_model, config.retrieval_width)
            self.text_projection = Head(config.d_model, config.retrieval_width)
            self.temperature = Temperature()

    def _init_weights(self, module: nn.Module) -> None:
        if reset_if_head(module):
            return
        visual = getattr(self, "visual_embedding", None)  # not there yet when the host's own constructor asks
        if visual is not None and any(module is part for part in visual.children()):
            visual.reset_layer(module)  # the host's rule for linears (T5: N(0, 1)) is not the projector's
        else:
            super()._init_weights(module)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        visual_features: Tensor | None = None,
        boxes: Tensor | None = None,
        image_ids: Tensor | None = None,
        visual_attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        encoder_outputs: Any = None,
        task: str | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """As the host's forward, with the encoder reading [text; vision].

        Args:
            input_ids, attention_mask: ``[B, L]`` text.
            visual_features: ``[B, V, F]``; None for text alone.
            boxes, image_ids: ``[B, V, 4]`` and ``[B, V]``, see :class:`VisualEmbedding`.
            visual_attention_mask: ``[B, V]``, zero for padding.
            labels: ``[B, T]`` target tokens, -100 for those that do not count.
            task: the batch's, for ``task_adapters``; read by nothing without them.

        Raises UserError for visual inputs that do not fit, and for no task where one is read.
        """
        if encoder_outputs is None:
            self._begin(task)
        if self.soft_prompt is not None and visual_features is None and encoder_outputs is None:
            raise UserError("soft_prompt stands between text and vision and needs visual_features, got None")
        if visual_features is not None and encoder_outputs is None:
            encoder_outputs, attention_mask = self._encode(
                input_ids, attention_mask, visual_features, boxes, image_ids, visual_attention_mask, **kwargs
            )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            labels=labels,
            encoder_outputs=encoder_outputs,
            **kwargs,
        )

    def _begin(self, task: str | None) -> None:
        """Tell ``task_adapters``, if there are any, whose pass begins."""
        adapters: Any = self.task_adapters
        if adapters is None:
            return
        if task is None:
            raise UserError("task_adapters make adapters of the batch's task, got task=None")
        adapters.task = task

    def _encode(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        visual_features: Tensor,
        boxes: Tensor | None = None,
        image_ids: Tensor | None = None,
        visual_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[BaseModelOutput, Tensor | None]:
        """Encoder output on [text; vision], or [text; prompt; vision], and the mask over it."""
        if input_ids is None:
            raise UserError("visual_features need input_ids beside them, got None")
        mask = join_masks(input_ids, attention_mask, visual_features, visual_attention_mask)
        encoder = self.get_encoder()
        vision = self.visual_embedding(visual_features, encoder.embed_tokens.weight, boxes, image_ids)
        if self.soft_prompt is not None:
            vision, mask = self._prompted(vision, mask, input_ids.shape[1])
        wanted = {name: kwargs[name] for name in ("output_attentions", "output_hidden_states") if kwargs.get(name)}
        return self.encode_joint(encoder, input_ids, vision, mask, **wanted), mask

    def _prompted(self, vision: Tensor, mask: Tensor | None, text: int) -> tuple[Tensor, Tensor | None]:
        """[prompt; vision], and the mask over [text; prompt; vision] made of that over [text; vision]."""
        prompt: Any = self.soft_prompt
        tokens = prompt().to(vision.dtype).expand(len(vision), -1, -1)
        if mask is not None:
            mask = torch.cat([mask[:, :text], mask.new_ones(tokens.shape[:2]), mask[:, text:]], dim=1)
        return torch.cat([tokens, vision], dim=1), mask

    def embed_images(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        visual_features: Tensor,
        boxes: Tensor | None = None,
        image_ids: Tensor | None = None,
    ) -> Tensor:
        """Unit vectors ``[B, 1, D]``, float32, of images beside the text ``[B, L]``: the encoder's mean over the visual
        tokens, projected. Arguments as in :meth:`forward`; the model has a ``retrieval_width``."""
        outputs, _ = self._encode(input_ids, attention_mask, visual_features, boxes, image_ids)
        states: Any = outputs.last_hidden_state
        return normalized(self.vision_projection(states[:, -visual_features.shape[1] :].mean(1, keepdim=True)))

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Unit vectors ``[B, D]``, float32, of texts ``[B, L]`` alone: the encoder's mean over them, projected."""
        states = self.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(states.dtype)
        return normalized(self.text_projection((states * kept).sum(1) / kept.sum(1).clamp(min=1)))

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """As the host's generate; visual inputs as in :meth:`forward`. The encoder runs once."""
        visual, task = {name: kwargs.pop(name) for name in VISUAL if name in kwargs}, kwargs.pop("task", None)
        if kwargs.get("encoder_outputs") is None:
            self._begin(task)
        if visual.get("visual_features") is not None and kwargs.get("encoder_outputs") is None:
            inputs = kwargs.pop("input_ids", None) if inputs is None else inputs
            kwargs["encoder_outputs"], kwargs["attention_mask"] = self._encode(
                inputs, kwargs.pop("attention_mask", None), **visual, **kwargs
            )
        return super().generate(inputs, generation_config, **kwargs)
