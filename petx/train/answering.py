"""One question on one image: the answer of a tuned model with its probability, and a picture of all three."""

import dataclasses
from pathlib import Path
from typing import Any

import matplotlib
import torch

from petx import hosts, tasks
from petx.data.pictures import read_picture
from petx.data.rows import PLACEHOLDER, is_whole
from petx.errors import UserError
from petx.files import written_whole
from petx.train.plots import drawn

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of backend)

LARGEST = 1200  # pixels of a drawn picture's longer side


@dataclasses.dataclass(frozen=True)
class Answer:
    text: str
    probability: float  # of the whole answer, its end included
    unknown: list  # words of the question that are not in the model's vocabulary


def asked(text: str, argument: str) -> str:
    """The question that a user wrote, without the placeholder of the image, which every host puts where it wants it;
    :class:`UserError` naming ``argument`` if nothing is left or it cannot be encoded."""
    question = text.replace(PLACEHOLDER, "").strip()
    if not question:
        raise UserError(f"{argument} must not be empty, got {text!r}")
    if not is_whole(question):
        raise UserError(f"{argument} must be text in the terminal's encoding, got {text!r}")
    return question


@torch.inference_mode()
def answer(loaded: Any, image: str, question: str, num_beams: int = 1) -> Answer:
    """:class:`Answer` of ``loaded`` (:class:`petx.train.tuned.Tuned`) to ``question`` on the file ``image``."""
    if tasks.only_ranks(loaded.settings):
        raise UserError("this adapter was trained to rank images and captions for one another; it answers no questions")
    model, tokenizer = loaded.model, loaded.tokenizer
    item = loaded.host.question_item(tasks.source(loaded.settings.data), loaded.settings, tokenizer, image, question)
    host = hosts.bound(model, tokenizer)
    prompt = host.prompts([item])
    _check_length(model, prompt)
    tokens = host.generate(model, prompt, num_beams=num_beams, max_new_tokens=item["max_target"])
    batch = host.collate([item | {"labels": tokens[0]}])
    labels = batch.pop("labels")
    logits = model(**{name: value for name, value in batch.items() if not name.startswith("loss_")})
    probability = (-host.token_losses(logits.logits, labels).sum()).exp().item()
    return Answer(tokenizer.decode(tokens[0], skip_special_tokens=True).strip(), probability, item["unknown"])


def _check_length(model: Any, prompt: dict[str, Any]) -> None:
    length = prompt["input_ids"].shape[1]
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or length
    if length > most:
        raise UserError(f"QUESTION is {length} tokens with what stands around it, and this model reads at most {most}")


def draw(image: str | Path, question: str, answer: Any, path: str | Path) -> None:
    """PNG at ``path``: the image with the question above and the answer below it."""
    picture = read_picture(image)
    picture.thumbnail((LARGEST, LARGEST))
    figure, axes = plt.subplots(figsize=(4, 4.6), layout="constrained")
    axes.imshow(picture, interpolation="nearest" if min(picture.size) < 200 else "antialiased")
    axes.set_title(drawn(question), fontsize=11, wrap=True)
    axes.set_xlabel(drawn(f"{answer.text}  (p = {answer.probability:.2f})"), fontsize=13, fontweight="bold")
    axes.set_xticks([])
    axes.set_yticks([])
    with written_whole(path) as target:
        figure.savefig(target, dpi=150, format="png")
    plt.close(figure)
