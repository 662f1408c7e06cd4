"""What lies in a data folder, task by task: splits, examples, pictures and features, and what is wrong with them."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from petx import _rooms
from petx.data.examples import Example
from petx.data.rows import json_rows
from petx.data.stores import ImageFiles, NpzFeatures, folders_of
from petx.errors import UserError
from petx.tasks.base import TaskSpec

SPLIT, INSIDE = "<split>", "*"  # in TaskSpec.files: the name in the file's, or in its entries


@dataclasses.dataclass(frozen=True)
class Looking:
    """Where and how pictures and features are looked for."""

    images_dir: str | None = None
    features_dir: str | None = None
    widths: tuple[int, int] = (2048, 512)  # of an image's features and of a video's
    tokens: tuple[int, int] = (36, 64)


@dataclasses.dataclass
class Found:
    """One split of a task: its file, what is said of it, and what is wrong."""

    task: str
    split: str
    file: str
    lines: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def check(folder: Path, spec: TaskSpec, looking: Looking) -> list[Found]:
    """Every split of ``spec`` below ``folder``, read as training and evaluation read it."""
    return [_checked(folder, spec, split, file, looking) for split, file in splits(folder, spec).items()]


def all_tasks() -> list[TaskSpec]:
    """The tasks that are read from a data folder."""
    modules = _rooms.modules(__name__.rpartition(".")[0]).values()
    return [module.TASK for module in modules if getattr(module, "TASK", None) and module.TASK.files]


def splits(folder: Path, spec: TaskSpec) -> dict[str, str]:
    """``{split: file}`` of the splits that lie there; of two files of one split the one that is read first."""
    found: dict[str, str] = {}
    taken: set[Path] = set()
    for pattern, name in spec.files.items():
        shape = re.compile(re.escape(pattern).replace(re.escape(SPLIT), "(.+)"))
        for path in sorted(folder.glob(pattern.replace(SPLIT, "*"))):
            match = shape.fullmatch(path.relative_to(folder).as_posix())
            if match is None or path in taken or not path.is_file():
                continue
            taken.add(path)
            file = path.relative_to(folder).as_posix()
            for split in _named(path, name, match):
                found.setdefault(split, file)
    return found


def _named(path: Path, name: str, match: re.Match) -> list[str]:
    """The splits of the file that ``match`` found, by what :attr:`TaskSpec.files` says of it."""
    if name == INSIDE:
        return _inside(path)
    return [name.replace(SPLIT, match[1]) if match.groups() else name] if name else []


def _inside(path: Path) -> list[str]:
    """The splits of Karpathy's file; its name, if it cannot be read, so that reading it says why."""
    try:
        return sorted({row.text("split") for row in json_rows(path, "split", key="images")})
    except UserError:
        return [path.stem]


def _checked(folder: Path, spec: TaskSpec, split: str, file: str, looking: Looking) -> Found:
    found = Found(spec.name, split, file)
    scored, why_not_scored = _read(folder, spec, split, training=False)
    trained, why_not_trained = _read(folder, spec, split, training=True)
    examples = trained if scored is None else scored
    if examples is None:  # of no use for either
        found.problems.append(why_not_scored)
        return found
    if scored is None:
        known = f"trained on, not scored: {why_not_scored}"
    elif not any(example.answered for example in examples):
        known = "no answers: predicted, not scored"
    else:
        known = "answers known" if trained is not None else f"scored, not trained on: {why_not_trained}"
    found.lines.append(f"{len(examples):,} examples, {known}")
    try:
        _look(folder, spec, examples, looking, found.lines)
    except UserError as error:
        found.problems.append(str(error))
    return found


def _read(folder: Path, spec: TaskSpec, split: str, *, training: bool) -> tuple[list[Example] | None, str]:
    """The examples of ``split``, or None and why it cannot be trained on, or else scored and written."""
    try:
        examples = spec.examples(folder, [split], training=training)
        if not training:
            spec.predictions.check(spec.name, examples)
    except UserError as error:
        return None, str(error)
    return examples, ""


def _look(folder: Path, spec: TaskSpec, examples: list[Example], looking: Looking, lines: list[str]) -> None:
    """Say in ``lines`` how many pictures and features are there; UserError if neither is whole, or one is damaged."""
    keys = list(dict.fromkeys(image for example in examples for image in example.images))
    store: Any = spec.store
    place = int(store is NpzFeatures)
    where = folders_of(looking.features_dir, str(folder), spec.features, store.default_folder)
    kinds: dict[str, Any] = {}
    whole, lacking = [], []
    try:
        kinds["features"] = store(where, looking.widths[place], looking.tokens[place])
    except UserError as reason:  # no h5py, which those who read pictures do not need
        lacking.append(str(reason))
    if not place:
        kinds["pictures"] = ImageFiles(folders_of(looking.images_dir, str(folder), spec.images, "images"), None)
    for kind, store in kinds.items():
        missing = [error for key in keys if (error := _missing(store, key)) is not None]
        lines.append(f"{kind}: {len(keys) - len(missing):,} of {len(keys):,} files")
        if missing:
            lacking.append(missing[0])
        else:
            whole.append(store)
    for store in whole:
        store.check(keys)
    if not whole:
        raise UserError("; ".join(lacking))


def _missing(store: Any, key: Any) -> str | None:
    try:
        path = store.path(key)
    except UserError as error:
        return str(error)
    return None if path.is_file() else f"no feature file {path}"
