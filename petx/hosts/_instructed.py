"""What hosts share that read an image and an instruction in front of a language model: batches, losses, generating."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoProcessor, PreTrainedModel

from petx import tasks
from petx._quiet import quiet_transformers
from petx.data.batches import IGNORED, padded
from petx.data.examples import Example
from petx.data.instructions import InstructTask, plain_caption
from petx.data.lemmas import check_lemmas
from petx.data.stores import ImageFiles, folders_of
from petx.data.task import Task
from petx.data.tokenizers import Tokenizers, unknown_words
from petx.errors import UserError
from petx.hosts.base import Host

MAX_ANSWER = 4  # tokens of an answer of petx predict, unless settings allow more


class Instructed(Host):
    """A vision-language model with an encoder-decoder or a decoder-only language model.

    A batch has ``pixel_values``, ``input_ids`` (the image token as often as the model has visual tokens, then the
    instruction) and ``attention_mask``, ``labels``, ``loss_weight``, ``loss_over``; and ``decoder_input_ids`` for an
    encoder-decoder. A decoder-only language model gets the answer behind the instruction in ``input_ids``; its
    ``labels`` are as long.
    """

    methods: ClassVar[tuple[str, ...]] = ("petal",)
    inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "input_ids", "attention_mask")
    given_settings: ClassVar[tuple[str, ...]] = ("dtype",)
    marks: ClassVar[int] = 0  # how often an instruction may say where the image stands
    model_class: type[PreTrainedModel]
    task_class: ClassVar[type[InstructTask]] = InstructTask
    store_class: ClassVar[type[ImageFiles]] = ImageFiles

    def __init__(self, config: Any, tokenizers: Tokenizers) -> None:
        self.pad = tokenizers.pad_token_id
        self.start = getattr(config.text_config, "decoder_start_token_id", None)
        self.image_tokens = torch.full((self.visual_tokens(config),), image_token(config))
        self.decoder_only = self.is_decoder_only(config)
        self.unsaid = [image_token(config)]

    @classmethod
    def visual_tokens(cls, config: Any) -> int:
        """How many tokens an image is for the language model."""
        return config.num_query_tokens

    @classmethod
    def is_decoder_only(cls, config: Any) -> bool:
        return config.use_decoder_only_language_model

    @classmethod
    def check(cls, settings: Any) -> None:
        given = [settings.instructions, settings.eval_instructions, *settings.task_instructions.values()]
        if max(map(len, given)) > 1:
            raise UserError(f"instructions: {cls.words} reads one instruction per image, got {max(map(len, given))}")
        if settings.ib != "off" and not cls.has_qformer:
            raise UserError(f"ib={settings.ib} needs a Q-Former, and {cls.words} has none")
        cls.check_lemmas(settings)

    @classmethod
    def check_lemmas(cls, settings: Any) -> None:
        """Raise :class:`UserError` if answers are to be lemmatised and that cannot be, or there are none."""
        if not settings.lemmatize:
            return
        check_lemmas()
        known = tasks.source(settings.data).specs(settings)
        if settings.tasks and all(name in known and known[name].metric == "caption" for name in settings.tasks):
            raise UserError("lemmatize is for answers, and all tasks are captions, which are scored as they are")

    @classmethod
    def tokenizers(cls, folder: str | Path) -> Tokenizers:
        """:class:`Tokenizers` of the checkpoint's processor."""
        try:
            with quiet_transformers():  # it says that the image processor is the slow one
                processor = AutoProcessor.from_pretrained(folder)
            return Tokenizers(processor.tokenizer, None, processor.image_processor)
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"host: {folder!s} has no {cls.words} processor (tokenizer, image processor): {error}"
            ) from error

    @classmethod
    def pretrained_tokenizers(cls, settings: Any) -> Tokenizers:
        image_token(AutoConfig.from_pretrained(settings.host))  # told before any work
        return cls.tokenizers(settings.host)

    @classmethod
    def load(cls, folder: str | Path, settings: Any) -> nn.Module:
        """The model in ``folder``, or of that hub name, in evaluation mode, in ``settings.dtype``."""
        more = cls.configured(folder, settings)
        return cls.class_of(folder).from_pretrained(folder, dtype=getattr(torch, settings.dtype), **more).eval()

    @classmethod
    def sketch(cls, settings: Any, data: Any) -> nn.Module | None:
        if settings.host is None:
            return super().sketch(settings, data)
        made: Any = cls.class_of(settings.host)
        given = cls.configured(settings.host, settings).get("config")
        return made(made.config_class.from_pretrained(settings.host) if given is None else given)

    @classmethod
    def configured(cls, folder: str | Path, settings: Any) -> dict[str, Any]:
        """``{"config": ...}`` of the model in ``folder`` if ``settings`` change it."""
        return {}

    @classmethod
    def class_of(cls, folder: str | Path) -> type[PreTrainedModel]:
        """The class of the model in ``folder``."""
        return cls.model_class

    @classmethod
    def adapted(cls, spec: Any, settings: Any) -> Any:
        target = settings.max_target.get(spec.name, spec.max_target)
        loss = spec.loss if settings.loss == "task" else settings.loss
        metric = settings.metrics.get(spec.name, spec.metric)
        return dataclasses.replace(spec, max_target=target, metric=metric, loss=loss)

    @classmethod
    def store(cls, spec: Any, settings: Any, tokenizer: Tokenizers, split: str) -> ImageFiles:
        """Image files; those of training are augmented."""
        if tokenizer.image_processor is None:
            raise UserError(
                f"host: {settings.host} was trained on features; data {settings.data} needs one that reads images"
            )
        folders = folders_of(settings.images_dir, settings.data_dir, spec.images, "images")
        return cls.store_class(folders, tokenizer.image_processor, settings.augment if split == "train" else "none")

    @classmethod
    def _words(cls, settings: Any, tokenizer: Tokenizers) -> int:
        """How many tokens labels may have; not the image's, which a processor adds as the last one."""
        count = len(tokenizer.text)
        added = settings.host is not None and image_token(AutoConfig.from_pretrained(settings.host)) == count - 1
        return count - added

    @classmethod
    def dataset(
        cls, spec: Any, examples: list[Example], store: Any, tokenizer: Tokenizers, settings: Any, split: str
    ) -> Task:
        """The question stands in the templates of ``spec``, or in those of ``settings`` for ``split``."""
        if split == "train" and settings.targets == "first":
            examples = [_first_answer(example) if example.answers else example for example in examples]
        if split == "train" and settings.clean_captions and spec.metric == "caption":
            examples = [_cleaned(example) for example in examples]
        templates = spec.templates or settings.task_instructions.get(spec.name, settings.instructions)
        if split == "pretraining" and not spec.templates:
            templates = settings.instructions[:1]
        elif split in ("dev", "test") and settings.eval_instructions:
            templates = settings.eval_instructions
        if settings.ib_vocabulary is not None and (words := cls._words(settings, tokenizer)) > settings.ib_vocabulary:
            raise UserError(
                f"ib_vocabulary must be at least the tokenizer's {words} tokens, got {settings.ib_vocabulary}"
            )
        if settings.host is not None:
            cls.check_texts(spec.name, examples, templates, settings, tokenizer)
        names = ("language_template", "metric", "max_target", "loss", "num_beams", "predictions")
        limits = {name: getattr(spec, name) for name in names}
        limits["lemmatize"] = settings.lemmatize and spec.metric != "caption"
        return cls._task(settings, spec.name, examples, store, tokenizer, templates, **limits)

    @classmethod
    def check_texts(cls, task: str, examples: list[Example], templates: Any, settings: Any, tokenizer: Any) -> None:
        """Raise :class:`UserError` if a template, question or answer has the token in it that stands for an image: the
        model would look for an image there."""
        config = AutoConfig.from_pretrained(settings.host)
        mark = cls.image_mark(config, tokenizer)
        for template in templates:
            if template.count(mark) > cls.marks:
                wanted = "must stand there once" if cls.marks else "is put in front of it"
                raise UserError(f"instructions: {mark}, the place of the image, {wanted}, got {template!r}")
        reads_answers = cls.is_decoder_only(config)
        for i, example in enumerate(examples):
            answers = [answer for answer, _ in example.answers] if reads_answers else []
            for text in (example.text, *answers):
                if mark in text:
                    where = f"example {i}" if example.id is None else f"example {example.id}"
                    raise UserError(f"task {task}: {where} has {mark}, which stands for an image, in {text!r}")

    @classmethod
    def image_mark(cls, config: Any, tokenizer: Any) -> str:
        """The token that stands for an image, as a text has it."""
        return tokenizer.text.convert_ids_to_tokens(image_token(config))

    @classmethod
    def question_item(
        cls, source: Any, settings: Any, tokenizer: Tokenizers, image: str, question: str
    ) -> dict[str, Any]:
        unknown = []
        if tokenizer.image_processor is not None:
            pixels, _ = cls.store_class(".", tokenizer.image_processor).read(Path(image))
        else:
            pixels = source.encode(image, settings)[0][0]
            unknown = unknown_words(question, tokenizer.qformer)
        templates = settings.eval_instructions or settings.instructions
        task = cls._task(settings, "vqa", [], None, tokenizer, templates, max_target=MAX_ANSWER, metric="exact")
        limit = settings.generation.get("max_new_tokens", max([MAX_ANSWER, *settings.max_target.values()]))
        return task.item(pixels, question) | {"max_target": limit, "unknown": unknown}

    @classmethod
    def _task(
        cls, settings: Any, name: str, examples: list, store: Any, tokenizers: Any, templates: Any, **limits: Any
    ) -> InstructTask:
        return cls.task_class(
            name,
            examples,
            store,
            tokenizers,
            templates=templates,
            clean=settings.clean_instructions,
            max_text=settings.max_text,
            generation=settings.generation,
            **limits,
        )

    def collate(self, items: list[dict]) -> dict[str, Any]:
        batch = self._images_and_instructions(items)
        prompts, answers = [self._prompt(item) for item in items], [item["labels"] for item in items]
        if self.decoder_only:
            labels = [torch.cat([torch.full_like(p, IGNORED), a]) for p, a in zip(prompts, answers, strict=True)]
            prompts = [torch.cat(pair) for pair in zip(prompts, answers, strict=True)]
        else:
            assert self.start is not None
            labels = answers
            targets = pad_sequence(answers, batch_first=True, padding_value=self.pad)
            batch["decoder_input_ids"] = torch.cat([torch.full((len(items), 1), self.start), targets[:, :-1]], dim=1)
        batch["input_ids"], batch["attention_mask"] = padded(prompts, self.pad)
        batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        batch["loss_weight"] = torch.tensor([item["weight"] for item in items])
        batch["loss_over"] = items[0]["loss"]
        return batch

    def prompts(self, items: list[dict]) -> dict[str, torch.Tensor]:
        batch = self._images_and_instructions(items)
        side = "left" if self.decoder_only else "right"  # generation goes on at the right end
        batch["input_ids"], batch["attention_mask"] = padded([self._prompt(item) for item in items], self.pad, side)
        return batch

    def token_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if not self.decoder_only:
            return super().token_losses(logits, labels)
        shifted = super().token_losses(logits[:, :-1], labels[:, 1:].contiguous())
        return torch.nn.functional.pad(shifted, (1, 0))

    def generate(self, model: Any, inputs: dict, **options: Any) -> torch.Tensor:
        if self.decoder_only:  # a token that stands for an image would ask for one when the answer is read
            given = getattr(model.generation_config, "suppress_tokens", None) or []
            options = dict(suppress_tokens=sorted({*given, *self.unsaid})) | options
        tokens = model.generate(**inputs, **options)
        return tokens[:, inputs["input_ids"].shape[1] if self.decoder_only else 1 :]

    def _prompt(self, item: dict) -> torch.Tensor:
        return torch.cat([self.image_tokens, item["input_ids"]])

    def _images_and_instructions(self, items: list[dict]) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.stack([item["pixel_values"] for item in items])}


def image_token(config: Any) -> int:
    """The token that stands for an image; :class:`UserError` if ``config`` is of a transformers that wrote none."""
    if config.image_token_id is None:
        raise UserError(
            f"host: image_token_index of its {config.model_type} config.json is missing, as an older transformers "
            "wrote it: take a newer revision, or add the token <image> to tokenizer, embedding and config"
        )
    return config.image_token_id


def _cleaned(example: Example) -> Example:
    """``example`` with its caption as PETAL's released code trains on it."""
    answers = tuple((plain_caption(text), score) for text, score in example.answers)
    return dataclasses.replace(example, answers=answers)


def _first_answer(example: Example) -> Example:
    """``example`` with the first of its answers alone: the first annotator's if they are given."""
    first = example.references[0] if example.references else example.answers[0][0]
    return dataclasses.replace(example, answers=((first, 1.0 if first else example.answers[0][1]),))


class WithQFormer(Instructed):
    """A host whose Q-Former stands between image and language model: what the papers call full tuning, LoRA."""

    has_qformer = True
    towers = ["qformer"]
    full_words = " of the Q-Former"

    @classmethod
    def load(cls, folder: str | Path, settings: Any) -> nn.Module:
        model: Any = super().load(folder, settings)
        if not model.query_tokens.any():
            raise UserError(f"{folder}: query_tokens are all zero, so the queries of its Q-Former cannot differ")
        return model

    @classmethod
    def full(cls, model: Any) -> list[nn.Parameter]:
        """Q-Former, queries and projection; not the text's way out of the last layer, which leads nowhere."""
        last = model.qformer.encoder.layer[-1]
        unread = [getattr(last, name, None) for name in ("intermediate", "output")]
        dead = {id(p) for part in unread if part is not None for p in part.parameters()}
        parts = (model.qformer, model.language_projection)
        return [model.query_tokens, *(p for part in parts for p in part.parameters() if id(p) not in dead)]

    @classmethod
    def vision_norm(cls, model: Any) -> nn.Module | None:
        return getattr(model.vision_model, "post_layernorm", None)

    @classmethod
    def everything(cls, model: Any) -> list[nn.Parameter]:
        return [*cls.full(model), *model.language_model.parameters()]

    lora_images = r"qformer\.encoder\.layer\.\d+\.crossattention\.attention\.(key|value)"

    @classmethod
    def lora(cls, rank: int, settings: Any) -> dict[str, Any]:
        """Query, key and value of every attention of the Q-Former, as PETAL's baseline; its scale is 1."""
        return dict(
            r=rank,
            lora_alpha=rank,
            lora_dropout=settings.adapter_dropout,
            target_modules=r"qformer\.encoder\.layer\.\d+\.(attention|crossattention)\.attention\.(query|key|value)",
        )
