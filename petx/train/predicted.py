"""Scores of prediction files, without a model: of a run, whose settings lie above the file, or of any task."""

import dataclasses
from pathlib import Path
from typing import Any

from petx import metrics, tasks
from petx.data.examples import Example
from petx.errors import UserError
from petx.files import read_json
from petx.tasks.base import TaskSpec
from petx.train import recipes
from petx.train.settings import Common, checked
from petx.train.stages import SETTINGS


def of_run(file: Path, data_dir: Path | None = None) -> tuple[TaskSpec, list[Example]]:
    """The task and the examples of ``OUT/ARM/seed-N/predictions/SPLIT-TASK``; the data is where the run found it, or in
    ``data_dir``."""
    above = file.resolve().parents
    note = next((folder / SETTINGS for folder in above[:5] if (folder / SETTINGS).is_file()), None)
    if note is None:
        raise UserError(f"{file} lies in no run: name its --task, --data_dir and --split")
    settings = _settings(note)
    split, dash, task = file.stem.partition("-")
    known = tasks.names(settings)
    if not dash or split not in ("dev", "test") or task not in known:
        raise UserError(f"{file.name} must be called dev-TASK or test-TASK, TASK one of {', '.join(known)}")
    if data_dir is not None:
        if settings.data_dir is None:
            raise UserError(f"--data_dir is for data of one's own, and this run's are {settings.data}")
        settings = dataclasses.replace(settings, data_dir=str(data_dir))
    return tasks.source(settings.data).examples(settings, task, split)


def scored(file: Path, spec: TaskSpec, examples: list[Example], metric: str | None = None) -> dict[str, float]:
    """``{metric: value}`` of the predictions in ``file``; UserError if there are no answers to score them by."""
    chosen = metric or spec.metric
    if metrics.reads_rankings(chosen) != spec.retrieval:
        other = "rankings" if spec.retrieval else "texts"
        raise UserError(f"metric {chosen} is not for {spec.name}, whose predictions are {other}")
    texts = spec.predictions.matched(file, examples)
    if not all(example.answered for example in examples):
        raise UserError(f"the answers of {spec.name} are not there: {file} cannot be scored")
    if metrics.reads_references(chosen) and not all(example.references for example in examples):
        raise UserError(f"metric {chosen} compares with annotators' answers, and {spec.name} has none here")
    return dict(metrics.find(chosen)(texts, examples))


def _settings(note: Path) -> Common:
    """The settings of the run in whose folder ``note`` lies; their names tell the recipe."""
    values: dict[str, Any] = read_json(note, hint="it is written by petx train beside its results")
    for name in recipes.names():
        kind = recipes.find(name).settings
        if values.keys() <= {field.name for field in dataclasses.fields(kind)}:
            return checked(kind, values)
    raise UserError(f"{note} holds settings of no recipe that this petx has")
