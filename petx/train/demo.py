"""What ``petx demo`` shows: a question on an image, answered by the frozen model and by what a run made of it."""

import dataclasses
import importlib
import os
from pathlib import Path
from typing import Any

from petx import hosts
from petx.errors import UserError
from petx.files import read_json
from petx.train import answering, stages, tuned
from petx.train.tuned import Tuned

HEADINGS = ("model", "answer", "probability")
IMAGE_HEIGHT = 360  # pixels of its place on the page, whatever the size of what is dropped there
USUAL = ("vlpet", "petal", "lora", "full")  # shown beside the frozen model if nothing is named


@dataclasses.dataclass
class Row:
    """A model of a run, and what tables call it."""

    arm: str
    title: str
    loaded: Tuned


def rows(folder: Path, arms: list[str] | None = None) -> list[Row]:
    """The frozen model and the tuned ones in ``folder``, which ``petx train`` wrote: ``arms``, or the usual ones.

    Of an arm with several seeds the first is taken. Every row holds a model of its own. Raises :class:`UserError` if
    there is none, or an arm is not there.
    """
    there = _tuned(folder)
    if not there:
        raise UserError(f"{folder} holds no tuned model: name an output folder of petx train (ARM/seed-N/tuned in it)")
    for arm in arms or ():
        if arm not in there:
            raise UserError(f"--arms: {folder} has no tuned {arm!r}; there are: {', '.join(there)}")
    chosen = list(dict.fromkeys(arms)) if arms else [arm for arm in there if arm in USUAL] or list(there)
    found = [Row(arm, _title(there[arm], loaded), loaded) for arm in chosen for loaded in [tuned.load(there[arm])]]
    order = list(found[0].loaded.recipe.baselines)
    places = {row.arm: order.index(arm) for row in found if (arm := row.loaded.manifest["arm"]) in order}
    found.sort(key=lambda row: places.get(row.arm, len(order)))  # a folder may have been renamed
    return [_frozen(found[0].loaded), *found]


def _tuned(folder: Path) -> dict[str, Path]:
    """``{arm: folder}`` of the tuned models of a run."""
    found: dict[str, Path] = {}
    for part in sorted(folder.iterdir()) if folder.is_dir() else ():
        seeds = sorted(stages.begun(part)) if part.is_dir() else []
        whole = [path for seed in seeds if (path := part / f"seed-{seed}" / "tuned").joinpath(tuned.MANIFEST).is_file()]
        if whole:
            found[part.name] = whole[0]
    return found


def _title(folder: Path, loaded: Tuned) -> str:
    result = folder.parent / stages.RESULT
    record = read_json(result, hint="it is written by petx train") if result.is_file() else {}
    baseline = loaded.recipe.baselines[loaded.manifest["arm"]]
    return baseline.titled(loaded.host, loaded.settings, loaded.manifest | {"rank_used": "?"} | record)


def _frozen(beside: Tuned) -> Row:
    model = hosts.load(beside.host, beside.host_folder, beside.settings).requires_grad_(False).eval()
    title = beside.recipe.baselines["frozen"].titled(beside.host, beside.settings, {})
    return Row("frozen", title, dataclasses.replace(beside, model=model))


def answered(models: list[Row], image: str | None, question: str, num_beams: int = 1) -> tuple[list[list[str]], str]:
    """``(table, note)``: for each of ``models`` its title, its answer and the answer's probability.

    The note names words that a model does not know. Raises :class:`UserError` without an image or a question.
    """
    if image is None:
        raise UserError("choose an image first")
    if not question.strip():
        raise UserError("ask a question first")
    question = answering.asked(question, "the question")
    table: list[list[str]] = []
    unknown: dict[str, None] = {}
    for row in models:
        found = answering.answer(row.loaded, image, question, num_beams)
        table.append([row.title, found.text, f"{found.probability:.3f}"])
        unknown |= dict.fromkeys(found.unknown)
    note = f"Not in the model's vocabulary: {', '.join(unknown)}" if unknown else ""
    return table, note


def page(models: list[Row], num_beams: int = 1) -> Any:
    """The page, a ``gradio.Blocks``."""
    gradio = library()

    def ask(image: str | None, question: str) -> tuple[list[list[str]], str]:
        try:
            return answered(models, image, question, num_beams)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    with gradio.Blocks(title="petx", analytics_enabled=False) as shown:
        with gradio.Row():
            image = gradio.Image(type="filepath", label="image", sources=["upload", "clipboard"], height=IMAGE_HEIGHT)
            with gradio.Column():
                question = gradio.Textbox(label="question", placeholder="what color is the shape?")
                button = gradio.Button("answer", variant="primary")
                table = gradio.Dataframe(
                    headers=list(HEADINGS),
                    interactive=False,
                    label="answers",
                    wrap=True,  # all three columns in sight, whatever a title's length
                    column_widths=["36%", "34%", "30%"],
                )
                note = gradio.Markdown()
        for event in (button.click, question.submit):
            event(ask, [image, question], [table, note], api_name="ask")
    return shown


def library() -> Any:
    """gradio; :class:`UserError` if it is not installed."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it would report its start
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise UserError("petx demo shows a page by gradio, which is not installed: pip install gradio") from error
