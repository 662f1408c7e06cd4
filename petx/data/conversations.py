"""What a model reads of a picture and a text, as its own processor and chat template put it; and a task of such."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, GenerationConfig

from petx._quiet import quiet_transformers
from petx.data.instructions import InstructTask, instruction, plain
from petx.data.stores import ImageFiles
from petx.errors import UserError

_QUESTION = "?"  # stands for any: an answer is rendered behind it


class Conversations:
    """A checkpoint's processor, which puts a picture and a text into one user's turn.

    Without a chat template the text follows the processor's image token. Attributes beside those of the tokenizer:
    ``processor``, ``text`` (the tokenizer) and ``ends``, the tokens at which generating stops.
    """

    qformer = None  # no second tokenizer

    def __init__(self, processor: Any, ends: tuple[int, ...]) -> None:
        self.processor, self.text = processor, processor.tokenizer
        self.image_processor = processor.image_processor
        self.text.padding_side = "left"  # generation goes on at the right end
        if self.text.pad_token is None:
            self.text.pad_token = self.text.eos_token  # masked, so that any token would do
        self.ends = ends

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Conversations":
        """Of the processor in ``folder``, or of that hub name; :class:`UserError` says what it lacks."""
        try:
            with quiet_transformers():  # it says that the image processor is the slow one
                processor: Any = AutoProcessor.from_pretrained(folder)
        except ImportError as error:
            said = " ".join(str(error).split())
            raise UserError(f"host: the processor of {folder!s} needs a package that is missing: {said}") from error
        except (OSError, ValueError, AttributeError, TypeError, LookupError) as error:
            raise UserError(f"host: {folder!s} has no processor of images and text: {error}") from error
        lacking = [part for part in ("tokenizer", "image_processor") if getattr(processor, part, None) is None]
        if lacking:
            raise UserError(
                f"host: {folder!s} has no processor of images and text: {type(processor).__name__} was found, without "
                f"{' and '.join(lacking)}. Put the checkpoint's processor files (preprocessor_config.json, "
                "processor_config.json, tokenizer.json, chat_template.jinja) into the folder"
            )
        if not cls._template(processor) and getattr(processor, "image_token", None) is None:
            raise UserError(
                f"host: {type(processor).__name__} of {folder!s} has neither a chat template nor an image token: "
                "nothing says where in a text an image goes"
            )
        return cls(processor, _ends(folder, processor.tokenizer))

    @property
    def image_tokens(self) -> list[int]:
        """The tokens that stand for an image in what the model reads."""
        given = getattr(self.processor, "image_token_ids", None) or [getattr(self.processor, "image_token_id", None)]
        return [int(token) for token in given if token is not None]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "text" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.text, name)  # pad_token_id, batch_decode and the like

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.text(*args, **kwargs)

    @staticmethod
    def _template(processor: Any) -> Any:
        return getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)

    def rendered(self, text: str, answer: str | None = None) -> str:
        """The conversation of an image with ``text``, up to where the model answers, or with its ``answer``."""
        template = self._template(self.processor)
        if not template:
            return f"{self.processor.image_token}{text}{answer or ''}"
        turns: list[dict] = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        if answer is not None:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        try:
            return self.processor.apply_chat_template(
                turns, chat_template=template, tokenize=False, add_generation_prompt=answer is None
            )
        except Exception as error:  # jinja's own, and whatever a template raises on purpose
            raise UserError(f"host: its chat template refuses an image with a question: {error}") from error

    def read(self, pictures: list[Any], texts: list[str]) -> dict[str, torch.Tensor]:
        """The model's inputs for one picture and one text each, filled up on the left."""
        shown = [self.rendered(text) for text in texts]
        begin = self.text.bos_token
        twice = {"add_special_tokens": False} if begin and shown[0].startswith(begin) else {}
        given: dict[str, Any] = dict(text=shown, images=[[picture] for picture in pictures], **twice)
        try:
            found = self.processor(**given, padding=True, return_tensors="pt")
        except ImportError as error:
            raise UserError(f"host: its processor needs a package that is missing: {error}") from error
        return {name: value for name, value in found.items() if torch.is_tensor(value) and name != "labels"}

    def answer(self, text: str, limit: int | None = None) -> torch.Tensor:
        """Tokens of ``text`` as the template writes an answer, with the token that ends it; at most ``limit``."""
        before, whole = self.rendered(_QUESTION), self.rendered(_QUESTION, text)
        tail = whole[len(before) :] if whole.startswith(before) else text
        first, both = (self._tokens(part) for part in (before, before + tail))
        tokens = both[len(first) :] if both[: len(first)] == first else self._tokens(tail)
        if not text:  # some templates leave the end out of an empty turn
            tokens = [token for token in tokens if token in self.ends]
        end = next((place for place, token in enumerate(tokens) if token in self.ends), None)
        last = self.ends[0] if end is None else tokens[end]
        kept = tokens[:end]
        return torch.tensor([*(kept if limit is None else kept[: limit - 1]), last], dtype=torch.long)

    def shortened(self, text: str, limit: int | None) -> str:
        """``text`` without its beginning if it has more than ``limit`` tokens."""
        tokens = self._tokens(text)
        return text if limit is None or len(tokens) <= limit else self.text.decode(tokens[-limit:]).strip()

    def _tokens(self, text: str) -> list[int]:
        return self.text(text, add_special_tokens=False)["input_ids"]


def _ends(folder: str | Path, tokenizer: Any) -> tuple[int, ...]:
    """Tokens at which generating stops: the tokenizer's own first, then those of the checkpoint."""
    found = [tokenizer.eos_token_id]
    try:
        given = GenerationConfig.from_pretrained(folder).eos_token_id
        found += given if isinstance(given, list) else [given]
    except OSError:  # a checkpoint without a generation_config.json
        pass
    known = tuple(dict.fromkeys(int(token) for token in found if token is not None))
    if not known:
        raise UserError(f"host: nothing in {folder!s} says which token ends an answer (eos_token of its tokenizer)")
    return known


class PictureFiles(ImageFiles):
    """:class:`petx.data.stores.ImageFiles` whose pictures are left to the processor, which reads a whole batch."""

    def processed(self, picture: Any) -> Any:
        return picture

    def size_read(self, picture: Any) -> tuple[int, int]:
        return picture.size


class ConversationTask(InstructTask):
    """A task whose items hold ``picture``, ``text`` and the answer's tokens as ``labels``."""

    tokenizers: Conversations

    def item(self, pixels: Any, text: str, answer: Any = "", score: float = 1.0) -> dict[str, Any]:
        """``pixels``: the picture."""
        asked = instruction(self.templates[0], text)
        asked = self.tokenizers.shortened(plain(asked) if self.clean else asked, self.max_text)
        labels = self.encode(answer, self.max_target)
        return {"picture": pixels, "text": asked, "labels": labels, "weight": score, "loss": self.loss}

    def _encode(self, text: str, limit: int | None = None, tokenizer: Any = None) -> torch.Tensor:
        return self.tokenizers.answer(text, limit)
