"""What the visual BART and T5 share as hosts: tokens for the visual embedding, batches, LoRA's targets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from petx._quiet import quiet_transformers
from petx.data.batches import IGNORED, padded, stacked
from petx.data.examples import Example
from petx.data.pairs import Pairs
from petx.data.stores import folders_of
from petx.data.task import Task
from petx.data.tokenizers import unknown_words, word_tokenizer
from petx.errors import UserError
from petx.hosts._retrieval import Inputs, Retrieves, pair_options, retrieval_width

PROJECTOR = "visual_embedding"
VISUAL = ("visual_features", "boxes", "image_ids")
MATCHES = ("false", "true")  # what the decoder says of an image and a caption
MAX_ANSWER = 4  # tokens of an answer of petx predict


class VisualEncoderDecoder(Retrieves):
    """An encoder-decoder that reads text and visual features. A subclass names its ``model_class``.

    A batch has ``input_ids`` and ``attention_mask [B, L]``, ``visual_features [B, V, F]``, ``boxes [B, V, 4]``,
    ``image_ids [B, V]``, ``task``, ``labels`` and ``decoder_input_ids [B, M]`` (the labels one place later),
    ``loss_weight [B]`` and ``loss_over``.

    Retrieval: an image beside the task's prompt and a caption by itself are the encoder's means; whether they match is
    asked as VL-T5 asks (arXiv 2102.02779), by which of "true" and "false" the decoder says of the two together.
    """

    methods = ("vlpet",)
    in_place = False
    projector = PROJECTOR
    has_new = takes_prompt = tells_task = True
    inputs = ("input_ids", "attention_mask", *VISUAL, "task")
    given_settings = ("dropout", "feature_width", "visual_tokens", "image_size")
    model_class: type[PreTrainedModel]
    extra_ids = True  # whether the 100 extra_id tokens of T5 are added, too

    def __init__(self, config: Any, tokenizer: Any) -> None:
        self.pad, self.start = tokenizer.pad_token_id, config.decoder_start_token_id
        self.text_pad, self.tokenizer = self.pad, tokenizer

    @classmethod
    def dropouts(cls, rate: float) -> dict[str, float]:
        """The configuration's fields for a dropout of ``rate``."""
        raise NotImplementedError

    @classmethod
    def tokenizers(cls, folder: str | Path) -> Any:
        return AutoTokenizer.from_pretrained(folder)

    @classmethod
    def pretrained_tokenizers(cls, settings: Any) -> Any:
        """Tokenizer of ``settings.host`` with the tokens VL-PET adds, the last 100 of them for the visual embedding."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(settings.host)
            AutoConfig.from_pretrained(settings.host)
        except (OSError, ValueError) as error:
            raise UserError(f"host: cannot load {settings.host!r}: {error}") from error
        extra = [f"<extra_id_{i}>" for i in reversed(range(100))] if cls.extra_ids else []
        tokenizer.add_tokens(extra + [f"<vis_extra_id_{i}>" for i in reversed(range(100))])
        return tokenizer

    @classmethod
    def load(cls, folder: str | Path, settings: Any = None) -> nn.Module:
        return cls.model_class.from_pretrained(folder)

    @classmethod
    def pretrained(cls, settings: Any, tokenizer: Any) -> nn.Module:
        """``settings.host`` with a new visual embedding of ``settings.feature_width`` and the new tokens' rows."""
        more: dict[str, Any] = cls.dropouts(settings.dropout) | retrieval_width(settings)
        with quiet_transformers():  # it says that visual_embedding is new
            model = cls.model_class.from_pretrained(settings.host, visual_width=settings.feature_width, **more)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        return model

    @classmethod
    def sketch(cls, settings: Any, data: Any) -> nn.Module | None:
        if settings.host is None:
            return super().sketch(settings, data)
        more = dict(visual_width=settings.feature_width, vocab_size=len(data.tokenizer)) | retrieval_width(settings)
        config: Any = cls.model_class.config_class
        return cls.model_class(config.from_pretrained(settings.host, **more))

    lessons = ("caption", "what")

    @classmethod
    def small_tokenizer(cls, texts: list[str], settings: Any, visual_tokens: int) -> Any:
        return word_tokenizer(["vqa: ", "caption: ", *texts], visual_tokens=visual_tokens)

    @classmethod
    def store(cls, spec: Any, settings: Any, tokenizer: Any, split: str) -> Any:
        folders = folders_of(settings.features_dir, settings.data_dir, spec.features, spec.store.default_folder)
        return spec.store(folders, settings.feature_width, settings.visual_tokens)

    @classmethod
    def dataset(cls, spec: Any, examples: list[Example], store: Any, tokenizer: Any, settings: Any, split: str) -> Task:
        """The task's prompt stands in front of every text, unless the settings want none."""
        prompt = spec.prompt if settings.task_prompts else ""
        if spec.retrieval:
            more: dict[str, Any] = spec.limits() | pair_options(settings)
            return Pairs(spec.name, examples, store, tokenizer, prompt=prompt, **more)
        return Task(spec.name, examples, store, tokenizer, prompt=prompt, **spec.limits())

    @classmethod
    def question_item(cls, source: Any, settings: Any, tokenizer: Any, image: str, question: str) -> dict[str, Any]:
        if not source.encodes_images:
            raise UserError("petx predict encodes images by EfficientNet-Lite0, which this model was not trained with")
        features, boxes = source.encode(image, settings)
        task = Task("vqa", [], None, tokenizer, max_target=MAX_ANSWER, metric="exact")
        return {
            "input_ids": task.encode("vqa: " + question),
            "labels": task.encode(""),
            "visual_features": features[0],
            "boxes": boxes[0],
            "image_ids": torch.zeros(len(boxes[0]), dtype=torch.long),
            "task": task.name,
            "weight": 1.0,
            "loss": "sample",
            "max_target": MAX_ANSWER,
            "unknown": unknown_words(question, tokenizer),
        }

    @classmethod
    def always(cls, model: nn.Module) -> list[nn.Module]:
        """The visual embedding, which is new to a pretrained host."""
        return [module for name, module in model.named_modules() if name.endswith(PROJECTOR)][:1]

    @classmethod
    def lora(cls, rank: int, settings: Any) -> dict[str, Any]:
        """VL-PET's baseline: queries and values of every attention, all biases, and the visual embedding.

        The paper's alpha / r is 0.25 at rank 128; here it is 1.
        """
        return dict(
            task_type="SEQ_2_SEQ_LM",
            r=rank,
            lora_alpha=rank,
            lora_dropout=0.1,
            target_modules=r".*\.(q_proj|v_proj|SelfAttention\.q|SelfAttention\.v|EncDecAttention\.q|EncDecAttention\.v)",
            modules_to_save=[PROJECTOR],
            bias="all",
        )

    @classmethod
    def lora_sizes(cls, model: nn.Module, settings: Any) -> Callable[[int], int]:
        """By building it, since biases and the visual embedding are trained with it."""

        def size(rank: int) -> int:
            tuned = get_peft_model(cls.skeleton(model), LoraConfig(**cls.lora(rank, settings)))
            return sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)

        return size

    def pictures(self, items: list[dict]) -> Inputs:
        prompts, mask = padded([item["prompt_ids"] for item in items], self.pad)
        return self._seen(items) | {"prompt_ids": prompts, "prompt_mask": mask}

    def seen(self, model: Any, batch: Inputs) -> Inputs:
        return {name: batch[name] for name in ("prompt_ids", "prompt_mask", *VISUAL)}

    def embed_images(self, model: Any, seen: Inputs) -> torch.Tensor:
        return model.embed_images(seen["prompt_ids"], seen["prompt_mask"], **self._visual(seen))

    def match(self, model: Any, seen: Inputs, captions: Inputs) -> torch.Tensor:
        return self.choice_logits(model, self._visual(seen) | captions, MATCHES, self.tokenizer)

    def _visual(self, batch: Inputs) -> Inputs:
        return {name: batch[name] for name in VISUAL}

    def _seen(self, items: list[dict]) -> Inputs:
        return {name: stacked([item[name] for item in items]) for name in VISUAL}

    def collate(self, items: list[dict]) -> dict[str, Any]:
        assert self.start is not None  # of an encoder-decoder
        texts, answers = [item["input_ids"] for item in items], [item["labels"] for item in items]
        input_ids, mask = padded(texts, self.pad)
        targets, kept = padded(answers, self.pad)
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            **self._seen(items),
            "task": items[0]["task"],
            "labels": targets.masked_fill(kept == 0, IGNORED),
            "decoder_input_ids": torch.cat([torch.full((len(items), 1), self.start), targets[:, :-1]], dim=1),
            "loss_weight": torch.tensor([item["weight"] for item in items]),
            "loss_over": items[0]["loss"],
        }
