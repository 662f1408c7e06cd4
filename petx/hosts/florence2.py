"""Florence-2: an image encoder in front of a BART-like encoder-decoder, which VL-PET adapts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import Florence2ForConditionalGeneration

from petx.data.examples import Example
from petx.data.stores import ImageFiles, folders_of
from petx.data.task import Task
from petx.data.tokenizers import Tokenizers
from petx.errors import UserError
from petx.hosts._instructed import Instructed

MAX_ANSWER = 20  # tokens of an answer of petx predict


class Florence2(Instructed):
    """Florence-2, a published checkpoint on image files; VL-PET goes into its language model, as into BART.

    A batch has ``pixel_values [B, 3, H, W]``, ``input_ids`` (the image token as often as the image has tokens, then
    ``<s> text </s>``), ``attention_mask``, ``decoder_input_ids``, ``labels``, ``loss_weight`` and ``loss_over``.
    """

    methods = ("vlpet",)
    model_types = ("florence2",)
    words, order = "Florence-2", 2
    model_class = Florence2ForConditionalGeneration
    projector = "multi_modal_projector"
    full_words = " of projector and language model"

    def __init__(self, config: Any, tokenizers: Tokenizers) -> None:
        self.pad, self.start = tokenizers.pad_token_id, config.text_config.decoder_start_token_id
        self.decoder_only = False
        self.image_tokens = torch.full((_image_tokens(config, tokenizers),), config.image_token_id)

    @classmethod
    def check(cls, settings: Any) -> None:
        if settings.data == "video-text":
            raise UserError("data video-text: its videos come as frame features, and Florence-2 reads one image file")

    @classmethod
    def load(cls, folder: str | Path, settings: Any = None) -> nn.Module:
        return cls.model_class.from_pretrained(folder).eval()

    @classmethod
    def adapted(cls, spec: Any, settings: Any) -> Any:
        return spec

    @classmethod
    def store(cls, spec: Any, settings: Any, tokenizer: Tokenizers, split: str) -> ImageFiles:
        """Image files, below ``features_dir`` or in the data folder."""
        folders = folders_of(settings.features_dir, settings.data_dir, spec.images, "images")
        return ImageFiles(folders, tokenizer.image_processor)

    @classmethod
    def dataset(
        cls, spec: Any, examples: list[Example], store: Any, tokenizer: Tokenizers, settings: Any, split: str
    ) -> Task:
        """The task's prompt stands in front of every text, unless the settings want none."""
        if any(len(example.images) != 1 for example in examples):
            raise UserError(f"task {spec.name} asks about several images at once, and Florence-2 reads one")
        prompt = spec.prompt if settings.task_prompts else ""
        return ImageTask(spec.name, examples, store, tokenizer, prompt=prompt, **spec.limits())

    @classmethod
    def question_item(
        cls, source: Any, settings: Any, tokenizer: Tokenizers, image: str, question: str
    ) -> dict[str, Any]:
        store = ImageFiles(".", tokenizer.image_processor)
        task = ImageTask("vqa", [], store, tokenizer, prompt="vqa: ", max_target=MAX_ANSWER, metric="exact")
        item = task.item(store.read(Path(image))[0], question, "", 1.0)
        return item | {"max_target": MAX_ANSWER, "unknown": []}

    @classmethod
    def full(cls, model: nn.Module) -> list[nn.Parameter]:
        """Projector and language model; the image encoder stays, as the features of VL-PET's other hosts do."""
        inner: Any = model.model
        return [*inner.multi_modal_projector.parameters(), *inner.language_model.parameters()]

    @classmethod
    def lora(cls, rank: int, settings: Any) -> dict[str, Any]:
        """Queries and values of every attention of the language model, as on VL-PET's other hosts, without biases."""
        return dict(
            task_type="SEQ_2_SEQ_LM",
            r=rank,
            lora_alpha=rank,
            lora_dropout=0.1,
            target_modules=r".*language_model\..*\.(q_proj|v_proj)",
        )


class ImageTask(Task):
    """A :class:`petx.data.task.Task` on pixels."""

    def item_of(self, key: Any, look: Callable[[Any], tuple]) -> dict[str, Any]:
        example, answer, score, _ = self.drawn(key)
        pixels, _ = look(example.images[0])
        return self.item(pixels, example.text, answer, score)

    def item(self, pixels: torch.Tensor, text: str, answer: str, score: float) -> dict[str, Any]:
        return {
            "pixel_values": pixels,
            "input_ids": self.encode(self.prompt + text, self.max_text),
            "labels": self.encode(answer, self.max_target),
            "weight": score,
            "loss": self.loss,
        }


def _image_tokens(config: Any, tokenizers: Tokenizers) -> int:
    """How many tokens an image is: one for each place of the encoder's last map, and their mean."""
    pixels = tokenizers.image_processor(Image.new("RGB", (8, 8)), return_tensors="pt")["pixel_values"]
    sides = list(pixels.shape[-2:])
    vision = config.vision_config
    for kernel, stride, padding in zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True):
        sides = [(side + 2 * padding - kernel) // stride + 1 for side in sides]
    return sides[0] * sides[1] + 1


HOST = Florence2
