"""InstructBLIP: PETAL's host, small on image features and pretrained here, or a published checkpoint on image files."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import nn
from transformers import AutoConfig, AutoProcessor, LlamaConfig, T5Config

from petx._quiet import quiet_transformers
from petx.data import smollm2
from petx.data.batches import padded
from petx.data.tokenizers import QFORMER_TOKENIZER, Tokenizers, word_tokenizer
from petx.errors import UserError
from petx.hosts._qformer_pairs import QFormerPairs
from petx.hosts._retrieval import retrieval_width
from petx.models import FeatureInstructBlip, InstructBlip, feature_config
from petx.tasks.easy_vqa import LESSONS

LEAST_STD = 1e-2  # features that never move are not blown up
FEATURES = FeatureInstructBlip.config_class.model_type


class InstructBlipHost(QFormerPairs):
    """InstructBLIP, whose Q-Former reads the instruction, too; the small host of PETAL's main job.

    A batch has ``qformer_input_ids`` and ``qformer_attention_mask`` beside the rest: ``[B, L]``, or ``[B, I, L]`` of I
    instructions.
    """

    model_types = ("instructblip", FEATURES)
    words, order = "InstructBLIP", 0
    inputs = ("pixel_values", "qformer_input_ids", "qformer_attention_mask", "input_ids", "attention_mask")
    small_settings = (
        *("language_model", "width", "layers", "lm_layers", "attention_heads", "ffn", "queries", "lessons", "init_std"),
        *("dropout", "aggregation", "feature_width", "image_size", "host_steps", "host_batch_size", "host_lr"),
    )
    given_settings = ("dtype", "aggregation")

    def __init__(self, config: Any, tokenizers: Tokenizers) -> None:
        super().__init__(config, tokenizers)
        self.qformer_pad = tokenizers.qformer.pad_token_id

    @classmethod
    def check(cls, settings: Any) -> None:
        cls.check_lemmas(settings)
        if settings.host is None and settings.language_model == "smollm2":
            smollm2.check()

    @classmethod
    def reads(cls, settings: Any) -> set[str]:
        found = super().reads(settings)
        if settings.host is None:
            return found - ({"lm_layers"} if settings.language_model == "smollm2" else set())
        return found | ({"image_size"} if cls.class_of(settings.host) is FeatureInstructBlip else set())

    @classmethod
    def tokenizers(cls, folder: str | Path) -> Tokenizers:
        """:class:`Tokenizers` of a host saved by petx, or of an InstructBLIP checkpoint's processor."""
        if AutoConfig.from_pretrained(folder).model_type == FEATURES:
            return Tokenizers.from_pretrained(folder)
        try:
            with quiet_transformers():  # it says that the image processor is the slow one
                processor = AutoProcessor.from_pretrained(folder)
            return Tokenizers(processor.tokenizer, processor.qformer_tokenizer, processor.image_processor)
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"host: {folder!s} has no InstructBLIP processor (tokenizer, {QFORMER_TOKENIZER}, image processor): "
                f"{error}"
            ) from error

    @classmethod
    def load(cls, folder: str | Path, settings: Any) -> nn.Module:
        model: Any = super().load(folder, settings)
        model.aggregation = settings.aggregation
        return model

    @classmethod
    def class_of(cls, folder: str | Path) -> type[InstructBlip]:
        return FeatureInstructBlip if AutoConfig.from_pretrained(folder).model_type == FEATURES else InstructBlip

    @classmethod
    def configured(cls, folder: str | Path, settings: Any) -> dict[str, Any]:
        """With the width of the heads for retrieval, which are new to the model."""
        made: Any = cls.class_of(folder)
        config = made.config_class.from_pretrained(folder)
        for name, value in retrieval_width(settings).items():
            setattr(config, name, value)
        return {"config": config}

    lessons = ("caption", "what", "words")
    llama_lessons = ("caption", "what", "match")  # it learns to match in some hundred steps, a t5 not in two thousand

    @classmethod
    def lessons_of(cls, settings: Any) -> tuple[str, ...]:
        if settings.data == "easy-vqa" and settings.language_model == "llama" and not settings.lessons:
            return cls.llama_lessons
        return super().lessons_of(settings)

    @classmethod
    def small_tokenizer(cls, texts: list[str], settings: Any, visual_tokens: int) -> Tokenizers:
        """Words for the Q-Former, and for the language model unless that is SmolLM2, which brings its own."""
        lessons = [LESSONS[one] for one in cls.lessons_of(settings)]
        own = [template.replace("{q}", "") for spec in lessons for template in spec.templates]
        texts = [*own, *settings.instructions, *settings.eval_instructions, *texts]
        qformer = word_tokenizer(texts, visual_tokens=0)
        qformer.add_tokens([AddedToken(smollm2.IMAGE_TOKEN, special=True)], special_tokens=True)
        return Tokenizers(smollm2.tokenizer() if settings.language_model == "smollm2" else qformer, qformer)

    @classmethod
    def small(cls, settings: Any, data: Any) -> nn.Module:
        """A :class:`petx.models.FeatureInstructBlip` of random weights, features standardised over the training images.

        With ``language_model: smollm2`` the language model is SmolLM2-135M with its pretrained weights.
        """
        tokenizers = data.tokenizer
        pretrained = smollm2.load(tokenizers.text) if settings.language_model == "smollm2" else None
        text = _TEXT[settings.language_model](settings, tokenizers.text) if pretrained is None else pretrained.config
        config = feature_config(
            settings.feature_width,
            text,
            queries=settings.queries,
            image_token=tokenizers.text.convert_tokens_to_ids(smollm2.IMAGE_TOKEN),
            vocab_size=len(tokenizers.qformer),
            hidden_size=settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.attention_heads,
            intermediate_size=settings.ffn,
            hidden_dropout_prob=settings.dropout,
            attention_probs_dropout_prob=settings.dropout,
            max_position_embeddings=settings.max_text,
            pad_token_id=tokenizers.qformer.pad_token_id,
            initializer_range=settings.init_std,
        )
        for name, value in retrieval_width(settings).items():
            setattr(config, name, value)
        model = FeatureInstructBlip(config)
        if pretrained is not None:
            model.language_model = pretrained
        if data.feature_stats is not None:
            mean, std = data.feature_stats
            model.vision_model.mean.copy_(mean)
            model.vision_model.std.copy_(std.clamp(min=LEAST_STD))
        return model

    @classmethod
    def sketch(cls, settings: Any, data: Any) -> nn.Module | None:
        own = settings.host is None and settings.language_model == "smollm2"
        return None if own else super().sketch(settings, data)

    @classmethod
    def prepare_pretraining(cls, model: Any, settings: Any) -> None:
        if settings.language_model == "smollm2":
            model.language_model.requires_grad_(False)

    def _images_and_instructions(self, items: list[dict]) -> dict[str, torch.Tensor]:
        count = len(items[0]["qformer_input_ids"])
        flat = [ids for item in items for ids in item["qformer_input_ids"]]
        ids, mask = padded(flat, self.qformer_pad)
        if count > 1:
            ids, mask = (tensor.unflatten(0, (len(items), count)) for tensor in (ids, mask))
        return super()._images_and_instructions(items) | {"qformer_input_ids": ids, "qformer_attention_mask": mask}


def _t5(settings: Any, tokenizer: Any) -> T5Config:
    sizes: dict[str, Any] = dict(
        vocab_size=len(tokenizer),
        d_model=settings.width,
        d_kv=settings.width // settings.attention_heads,
        d_ff=settings.ffn,
        num_layers=settings.lm_layers,
        num_decoder_layers=settings.lm_layers,
        num_heads=settings.attention_heads,
        dropout_rate=settings.dropout,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
    )
    return T5Config(**sizes)


def _llama(settings: Any, tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.ffn,
        num_hidden_layers=settings.lm_layers,
        num_attention_heads=settings.attention_heads,
        num_key_value_heads=settings.attention_heads,
        max_position_embeddings=256,
        attention_dropout=settings.dropout,
        initializer_range=settings.init_std,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


_TEXT = {"t5": _t5, "llama": _llama}
HOST = InstructBlipHost
