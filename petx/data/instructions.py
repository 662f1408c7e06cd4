"""Questions and captions as InstructBLIP reads them: instruction templates, two tokenizers, image files, batches."""

import dataclasses
import random
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from transformers import AutoTokenizer

from petx.data.tasks import Task, sampled_answer
from petx.errors import UserError

QFORMER_TOKENIZER = "qformer_tokenizer"  # subfolder, where InstructBLIP's processor keeps it too
_DROPPED = str.maketrans("", "", '.!"()*#:;~')
_SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".webp")


@dataclasses.dataclass
class Tokenizers:
    """The language model's tokenizer and the Q-Former's, and the host's image processor where it reads pixels."""

    text: object
    qformer: object
    image_processor: object = None

    def __getattr__(self, name):
        if name.startswith("__") or "text" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.text, name)  # pad_token_id, batch_decode and the like are the language model's

    def save_pretrained(self, folder):
        self.text.save_pretrained(folder)
        self.qformer.save_pretrained(Path(folder, QFORMER_TOKENIZER))

    @classmethod
    def from_pretrained(cls, folder):
        return cls(
            AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder, subfolder=QFORMER_TOKENIZER)
        )


def instruction(template, question):
    """``template`` with ``question`` for its ``{q}``; :class:`UserError` where it has another field."""
    try:
        return template.format(q=question).strip()
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"instruction template {template!r}: {{q}} is the only field there is ({error!r})") from error


def plain(text):
    """Lower case without ``. ! " ( ) * # : ; ~``, as PETAL's released code cleans its training instructions."""
    return " ".join(text.lower().translate(_DROPPED).split())


class ImageFiles:
    """Pixels of ``<folder>/<image>``, with or without a suffix, as the host's image processor makes them.

    ``augment``: ``"none"``, ``"crop"`` (a random part of half to all of the area, resized) or ``"crop-flip"``, for the
    keys that come with a draw: :meth:`__call__` with ``draw`` gives the same pixels for the same draw.
    """

    def __init__(self, folder, processor, augment="none"):
        self.folder, self.processor, self.augment = Path(folder), processor, augment

    def path(self, image):
        found = next((path for end in _SUFFIXES if (path := self.folder / f"{image}{end}").is_file()), None)
        if found is None:
            raise UserError(f"no image file {self.folder / str(image)}, nor with one of {', '.join(_SUFFIXES[1:])}")
        return found

    def check(self, images):
        """Raise :class:`UserError` if a file is missing or its beginning is not an image's."""
        for image in images:
            path = self.path(image)
            try:
                with Image.open(path):
                    pass
            except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
                raise UserError(f"cannot read {path} as an image: {error}") from error

    def __call__(self, image, draw=""):
        return self.read(self.path(image), draw)

    def read(self, path, draw=""):
        try:
            with Image.open(path) as file:
                picture = file.convert("RGB")
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot read {path} as an image: {error}") from error
        if draw and self.augment != "none":
            picture = self._augmented(picture, random.Random(f"{draw} {path.name}"))
        return self.processor(picture, return_tensors="pt")["pixel_values"][0], None

    def _augmented(self, picture, draw):
        width, height = picture.size
        side = draw.uniform(0.5, 1) ** 0.5
        ratio = draw.uniform(0.75, 1.33) ** 0.5
        w, h = max(1, min(width, round(width * side * ratio))), max(1, min(height, round(height * side / ratio)))
        left, top = draw.randint(0, width - w), draw.randint(0, height - h)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
        if self.augment == "crop-flip" and draw.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return picture


class InstructTask(Task):
    """A :class:`petx.data.tasks.Task` whose items are InstructBLIP's: one or several instructions an image.

    Args:
        tokenizers: :class:`Tokenizers`.
        templates: instructions with ``{q}`` where the example's text goes. The Q-Former reads each; the language model
            reads the first.
        clean: whether instructions are made :func:`plain`.
    """

    def __init__(self, name, examples, features, tokenizers, *, templates, clean=False, **options):
        super().__init__(name, examples, features, tokenizers.text, **options)
        self.tokenizers, self.templates, self.clean = tokenizers, tuple(templates), clean

    def __getitem__(self, key):
        index, draw = key if isinstance(key, tuple) else (key, "")
        example = self.examples[index]
        answer, score = sampled_answer(example.answers, f"{self.name} {draw} {index}")
        (image,) = example.images
        pixels, _ = self.features(image, draw) if isinstance(self.features, ImageFiles) else self.features(image)
        return self.item(pixels, example.text, answer, score)

    def item(self, pixels, text, answer="", score=1.0):
        texts = [instruction(template, text) for template in self.templates]
        texts = [plain(each) for each in texts] if self.clean else texts
        read = {}
        if self.tokenizers.qformer is not None:
            read["qformer_input_ids"] = [self.encode(each, self.max_text, self.tokenizers.qformer) for each in texts]
        return read | {
            "pixel_values": pixels,
            "input_ids": self.encode(texts[0], self.max_text, self.tokenizers.text),
            "labels": self.encode(answer, self.max_target, None),
            "weight": score,
            "loss": self.loss,
        }

    def _encode(self, text, limit, tokenizer):
        if tokenizer is not None:  # an instruction: what is too long loses its beginning
            tokens = tokenizer(text)["input_ids"]
            return torch.tensor(tokens[-limit:] if limit else tokens, dtype=torch.long)
        tokens = self.tokenizers.text(text, add_special_tokens=False)["input_ids"]
        return torch.tensor([*tokens[: limit - 1], self.tokenizers.text.eos_token_id], dtype=torch.long)
