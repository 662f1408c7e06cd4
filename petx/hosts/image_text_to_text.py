"""Any other vision-language model of transformers, read through its own processor and chat template."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from petx.data.batches import IGNORED, padded
from petx.data.conversations import Conversations, ConversationTask, PictureFiles
from petx.data.examples import Example
from petx.data.stores import ImageFiles, folders_of
from petx.data.task import Task
from petx.errors import UserError
from petx.hosts._instructed import Instructed
from petx.tuners._common.language_model import language_model
from petx.tuners._common.paths import plain_modules
from petx.tuners.petal.hosts import projectors

LORA_DROPOUT = 0.1  # of VL-PET's baseline
MAX_ANSWER = 20  # tokens of an answer of petx predict
# Type of an answer's tokens, beside that of the prompt's, 0: PaliGemma attends both ways within all that has type 0.
ANSWER_TYPES = {"paligemma": 1}
IMAGE_TOKENS = ("image_token_id", "video_token_id", "audio_token_id", "image_patch_id")  # of a configuration
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")


class ImageTextToText(Instructed):
    """Any other model of transformers' ``AutoModelForImageTextToText``, a published checkpoint with its processor.

    A batch has what the processor makes of one picture and one text each, the answers behind the prompts: prompts are
    filled up on the left and answers on the right, in training as in generating. ``labels [B, L]`` are the answers'
    tokens alone. An encoder-decoder gets the answers in ``decoder_input_ids`` instead.
    """

    methods = ("petal", "vlpet")
    words, order = "an image-text-to-text model", 90
    full_words = " of projector and language model"
    task_class = ConversationTask
    store_class = PictureFiles

    def __init__(self, config: Any, tokenizers: Conversations) -> None:
        self.reader, self.pad = tokenizers, tokenizers.pad_token_id
        self.decoder_only = self.is_decoder_only(config)
        text = config.get_text_config(decoder=True)
        self.start = getattr(text, "decoder_start_token_id", None)
        if self.start is None:
            self.start = getattr(text, "bos_token_id", None)
        self.answer_type = ANSWER_TYPES.get(config.model_type, 0)
        named = {value for name in IMAGE_TOKENS if isinstance(value := getattr(config, name, None), int)}
        self.unsaid = sorted({*named, *tokenizers.image_tokens})

    # ---- the model ----

    @classmethod
    def takes(cls, config: Any) -> bool:
        """Those of the class that ``AutoModelForImageTextToText`` makes of their type, or that name none."""
        made = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
        return made is not None and (not config.architectures or made in config.architectures)

    @classmethod
    def reads_by(cls, tokenizer: object) -> bool:
        return isinstance(tokenizer, Conversations)

    @classmethod
    def is_decoder_only(cls, config: Any) -> bool:
        return not config.is_encoder_decoder

    @classmethod
    def vlpet_preset(cls, config: Any) -> str:
        return "decoder" if cls.is_decoder_only(config) else "auto"

    @classmethod
    def check(cls, settings: Any) -> None:
        if settings.recipe == "petal":
            super().check(settings)
        elif settings.data == "video-text":
            raise UserError(f"data video-text: its videos come as frame features, and {cls.words} reads one image file")

    @classmethod
    def tokenizers(cls, folder: str | Path) -> Any:
        return Conversations.from_pretrained(folder)

    @classmethod
    def pretrained_tokenizers(cls, settings: Any) -> Any:
        """The processor, once it was seen to read an image with a question and to write an answer."""
        from PIL import Image

        reader = cls.tokenizers(settings.host)
        try:
            reader.read([Image.new("RGB", (64, 48))], ["?"])
            reader.answer("yes")
        except UserError:
            raise
        except Exception as error:  # processors raise what their parts do
            said = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"host: the processor of {settings.host!r} cannot read an image with text: {said}"
            ) from error
        return reader

    @classmethod
    def load(cls, folder: str | Path, settings: Any) -> nn.Module:
        """The model in ``folder``, or of that hub name, in evaluation mode; VL-PET's recipe has it in float32."""
        dtype = getattr(torch, getattr(settings, "dtype", "float32"))
        return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()

    @classmethod
    def class_of(cls, folder: str | Path) -> type[PreTrainedModel]:
        found: Any = AutoModelForImageTextToText._model_mapping[type(AutoConfig.from_pretrained(folder))]
        return found

    # ---- its data ----

    @classmethod
    def adapted(cls, spec: Any, settings: Any) -> Any:
        return super().adapted(spec, settings) if settings.recipe == "petal" else spec

    @classmethod
    def store(cls, spec: Any, settings: Any, tokenizer: Any, split: str) -> ImageFiles:
        """Image files; for VL-PET's recipe below ``features_dir`` or in the data folder."""
        if settings.recipe == "petal":
            return super().store(spec, settings, tokenizer, split)
        return cls.store_class(folders_of(settings.features_dir, settings.data_dir, spec.images, "images"), None)

    @classmethod
    def dataset(cls, spec: Any, examples: list[Example], store: Any, tokenizer: Any, settings: Any, split: str) -> Task:
        """As PETAL's hosts read it; for VL-PET's recipe with the task's prompt in front, unless settings want none."""
        if any(len(example.images) != 1 for example in examples):
            raise UserError(f"task {spec.name} asks about several images at once, and {cls.words} is given one")
        if settings.recipe == "petal":
            return super().dataset(spec, examples, store, tokenizer, settings, split)
        limits = {name: value for name, value in spec.limits().items() if name != "choices"}
        templates = [f"{spec.prompt if settings.task_prompts else ''}{{q}}"]
        cls.check_texts(spec.name, examples, templates, settings, tokenizer)
        return cls.task_class(spec.name, examples, store, tokenizer, templates=templates, **limits)

    @classmethod
    def image_mark(cls, config: Any, tokenizer: Any) -> str:
        """The processor's, where a model's configuration names another for its place in the embeddings."""
        return getattr(tokenizer.processor, "image_token", None) or super().image_mark(config, tokenizer)

    @classmethod
    def question_item(cls, source: Any, settings: Any, tokenizer: Any, image: str, question: str) -> dict[str, Any]:
        if settings.recipe == "petal":
            return super().question_item(source, settings, tokenizer, image, question)
        store = cls.store_class(".", None)
        limits: dict[str, Any] = dict(max_target=MAX_ANSWER, metric="exact")
        template = "vqa: {q}" if settings.task_prompts else "{q}"
        task = cls.task_class("vqa", [], store, tokenizer, templates=[template], **limits)
        return task.item(store.read(Path(image))[0], question) | {"max_target": MAX_ANSWER, "unknown": []}

    # ---- its parts ----

    @classmethod
    def full(cls, model: Any) -> list[nn.Parameter]:
        """The language model with its head, and what brings images into it; the image encoder stays as it is.

        If nothing is found that brings images into it, everything.
        """
        root, modules = language_model(model), plain_modules(model)
        found = projectors(model, modules, root) if root is not None else []
        if root is None or not found:
            return list(model.parameters())
        parts = [modules[root], *(modules[path] for path in found)]
        head = model.get_output_embeddings()
        parts += [] if head is None else [head]
        return [parameter for part in parts for parameter in part.parameters()]

    @classmethod
    def lora(cls, rank: int, settings: Any) -> dict[str, Any]:
        """Query, key and value of every attention of the language model; its scale is 1."""
        return dict(
            r=rank,
            lora_alpha=rank,
            lora_dropout=settings.adapter_dropout if settings.recipe == "petal" else LORA_DROPOUT,
            target_modules=r"(.*\.)?(language_model|text_model|decoder)\..*\.(q_proj|k_proj|v_proj)",
        )

    @classmethod
    def lora_sizes(cls, model: nn.Module, settings: Any) -> Any:
        sizes = super().lora_sizes(model, settings)
        if not sizes(1):
            raise UserError(
                f"arm lora: {type(model).__name__} has no q_proj, k_proj or v_proj in its language_model; leave it out"
            )
        return sizes

    # ---- bound to a configuration and a processor ----

    def prompts(self, items: list[dict]) -> dict[str, torch.Tensor]:
        return self.reader.read([item["picture"] for item in items], [item["text"] for item in items])

    def collate(self, items: list[dict]) -> dict[str, Any]:
        batch: dict[str, Any] = self.prompts(items)
        targets, kept = padded([item["labels"] for item in items], self.pad)
        labels = targets.masked_fill(kept == 0, IGNORED)
        if self.decoder_only:
            self._append(batch, targets, kept)
            labels = torch.nn.functional.pad(labels, (batch["input_ids"].shape[1] - labels.shape[1], 0), value=IGNORED)
        else:
            assert self.start is not None
            batch["decoder_input_ids"] = torch.cat([torch.full((len(items), 1), self.start), targets[:, :-1]], dim=1)
        batch["labels"] = labels
        batch["loss_weight"] = torch.tensor([item["weight"] for item in items])
        batch["loss_over"] = items[0]["loss"]
        return batch

    def _append(self, batch: dict[str, Any], targets: torch.Tensor, kept: torch.Tensor) -> None:
        """Put ``targets [B, M]`` behind the prompts in all that ``batch`` says of tokens."""
        mask = batch["attention_mask"]
        batch["input_ids"] = torch.cat([batch["input_ids"], targets], dim=1)
        batch["attention_mask"] = torch.cat([mask, kept.to(mask.dtype)], dim=1)
        for name in TOKEN_TYPES:
            if name in batch:
                types = torch.full_like(targets, self.answer_type if name == "token_type_ids" else 0)
                batch[name] = torch.cat([batch[name], types.to(batch[name].dtype)], dim=1)
        if "cross_attention_mask" in batch:  # [B, L, images, tiles]: an answer sees what the prompt's end sees
            seen = batch["cross_attention_mask"]
            batch["cross_attention_mask"] = torch.cat([seen, seen[:, -1:].expand(-1, targets.shape[1], -1, -1)], dim=1)


HOST = ImageTextToText
