"""Any data set of the hub or of disk, by the library ``datasets``: a mapping says which column is what.

In the settings, by task::

    data: datasets
    tasks: [vizwiz]
    datasets:
      vizwiz: {path: lmms-lab/VizWiz-VQA, question: question, answers: answers, image: image, metric: vqa}
    splits: {vizwiz: {train: [train], dev: ["val[:10%]"], test: [val]}}
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from petx import metrics
from petx.data.examples import Example
from petx.data.pictures import check_picture, read_picture
from petx.data.rows import Row, answered
from petx.data.stores import ImageFiles
from petx.errors import UserError
from petx.metrics import vqa_scores
from petx.options import checked_value
from petx.tasks import _answers, _captions
from petx.tasks._own_data import OwnData
from petx.tasks.base import TaskSpec

COLUMNS = ("question", "answers", "captions", "image", "id", "kind")
FIELDS: dict[str, tuple[Any, dict[str, Any]]] = {  # of a mapping, beside the columns
    "path": (str, {}),
    "name": (str | None, {}),
    "revision": (str | None, {}),
    "metric": (str, {}),
    "prompt": (str, {}),
    "max_text": (int | None, dict(least=1)),
    "max_target": (int, dict(least=1)),
    "num_beams": (int, dict(least=1)),
}

_OF_TASK = [field for field in FIELDS if field not in ("path", "name", "revision")]


@dataclasses.dataclass(frozen=True)
class Columns:
    """The mapping of one task: where its rows come from, and which column is what; ``a.b`` is ``b`` inside ``a``."""

    task: str
    path: str
    name: str | None = None
    revision: str | None = None
    question: str | None = None
    answers: str | None = None
    captions: str | None = None
    image: str = "image"
    id: str | None = None
    kind: str | None = None

    def loaded(self, split: str) -> Any:
        """The ``datasets.Dataset`` of ``split``; UserError if a column is not there."""
        found = _loaded(self.path, self.name, self.revision, split)
        for name, column in self.columns.items():
            if column.partition(".")[0] not in found.column_names:
                known = ", ".join(found.column_names)
                raise UserError(f"{self.place(split)}: {name} is no column, got {column!r}; there are: {known}")
        return found

    @property
    def columns(self) -> dict[str, str]:
        """``{what it is: column}``."""
        return {name: column for name in COLUMNS if (column := getattr(self, name)) is not None}

    def place(self, split: str) -> str:
        """What messages call ``split``."""
        return f"datasets.{self.task}: {self.path}, {split}"

    def rows(self, split: str) -> list[Row]:
        """Its rows without their pictures. A field that is null, or an empty list or text, counts as missing."""
        found, wanted = self.loaded(split), self.columns
        if self.pictures(split):
            del wanted["image"]
        read = found.select_columns(sorted({column.partition(".")[0] for column in wanted.values()}))
        rows = []
        for i, row in enumerate(read):
            values = {name: _inside(row, column) for name, column in wanted.items()}
            kept = {name: value for name, value in values.items() if value is not None and value not in ([], "")}
            rows.append(Row(kept, f"{self.place(split)}, row {i}"))
        return rows

    def pictures(self, split: str) -> bool:
        """Whether the column of images holds pictures, and not their names."""
        import datasets

        return isinstance(self.loaded(split).features.get(self.image), datasets.Image)

    def picture(self, key: str) -> tuple[Any, str]:
        """The picture of the row that ``key`` of :func:`key_of` names, its bytes or the path of its file; and what
        messages call it."""
        split, _, i = key.rpartition("/")
        raw = _undecoded(self, split)[int(i)][self.image]
        where = f"{self.place(split)}, row {i}, {self.image}"
        if raw is None or (raw["bytes"] is None and not raw["path"]):
            raise UserError(f"{where}: there is no picture")
        return raw["path"] if raw["bytes"] is None else raw["bytes"], where


def key_of(split: str, row: int) -> str:
    """What names the picture of a row, for the store and in prediction files."""
    return f"{split}/{row}"


@functools.lru_cache(maxsize=16)
def _loaded(path: str, name: str | None, revision: str | None, split: str) -> Any:
    import datasets

    try:
        if not _on_disk(path):
            return datasets.load_dataset(path, name, split=split, revision=revision)
        found = datasets.load_from_disk(path)
    except Exception as error:  # the library raises what its readers, file systems and the hub's client raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"datasets: cannot load {path!r}, split {split!r}: {said}") from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise UserError(f"datasets: {path} has no split {split!r}; there are: {', '.join(found)}")
        return found[split]
    return found


@functools.lru_cache(maxsize=16)
def _undecoded(columns: Columns, split: str) -> Any:
    """``split`` with its pictures as they are stored."""
    import datasets

    return (
        columns.loaded(split).select_columns([columns.image]).cast_column(columns.image, datasets.Image(decode=False))
    )


def _on_disk(path: str) -> bool:
    """Whether ``save_to_disk`` wrote the folder; other folders, of parquet or CSV, are loaded as from the hub."""
    return any(Path(path, name).is_file() for name in ("dataset_dict.json", "state.json"))


def _inside(row: Mapping[str, Any], column: str) -> Any:
    """The value of ``column``; what ``a.b`` names inside a mapping, a list of them, or a mapping of lists."""
    first, _, rest = column.partition(".")
    value = row.get(first)
    if not rest or value is None:
        return value
    return [_inside(one, rest) for one in value] if isinstance(value, list) else _inside(value, rest)


class Pictures(ImageFiles):
    """Pictures in the rows of a data set, as :class:`petx.data.stores.ImageFiles` gives those in files."""

    def __init__(self, columns: Columns, files: ImageFiles) -> None:
        super().__init__(files.folders, files.processor, files.augment)
        self.columns, self.files = columns, files

    def path(self, image: str) -> Path:
        raise UserError(f"{image} is a row of {self.columns.path}, and no file")

    def check(self, images: Any) -> None:
        """Raise :class:`UserError` if a row has no picture or one that cannot be read."""
        for image in images:
            check_picture(*self.columns.picture(image))

    def __call__(self, image: str, draw: str = "") -> tuple:
        return self.files.pixels(read_picture(*self.columns.picture(image)), draw, image)


def task_of(name: str, given: Mapping[str, Any]) -> tuple[TaskSpec, Columns]:
    """The task that the mapping ``given`` describes; UserError names what is unknown, missing or too much in it."""
    where = f"datasets.{name}"
    for field in given:
        if field not in COLUMNS and field not in FIELDS:
            raise UserError(f"{where}: unknown {field!r}; there are: {', '.join((*FIELDS, *COLUMNS))}")
    rules = FIELDS | dict.fromkeys(COLUMNS, (str, {}))
    values = {field: checked_value(f"{where}.{field}", value, *rules[field]) for field, value in given.items()}
    if "path" not in values:
        raise UserError(f"{where}: path is missing, a hub name or a folder")
    if ("answers" in values) == ("captions" in values):
        raise UserError(f"{where}: one of answers and captions must name a column, got {sorted(values)}")
    if "answers" in values and "question" not in values:
        raise UserError(f"{where}: question is missing, the column that is asked")
    own = {field: values.pop(field) for field in _OF_TASK if field in values}
    columns = Columns(name, **values)
    captions = columns.captions is not None
    own.setdefault("metric", "caption" if captions else "exact")
    if own["metric"] not in metrics.names():
        raise UserError(f"{where}.metric must be one of {', '.join(metrics.names())}; got {own['metric']!r}")
    own.setdefault("prompt", f"{name}: ")
    if captions:
        own = dict(max_target=40, num_beams=5, loss="token") | own
    read = functools.partial(_read, columns, own["metric"])
    title = f"{columns.path}, by the columns that the settings name"
    return TaskSpec(name, title, data="datasets", read=read, **own), columns


def _read(columns: Columns, metric: str, folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    rows = columns.rows(split)
    images = _images(columns, rows, split)
    if columns.captions is not None:
        told = answered(rows, "captions", training=training)
        captions = [row.one_or_texts("captions") if told else () for row in rows]
        ids = [row.get("id", i) for i, row in enumerate(rows)]
        yield from _captions.examples(zip(ids, images, captions, strict=True), training)
        return
    told = answered(rows, "answers", training=training)
    for row, image in zip(rows, images, strict=True):
        if "question" not in row:
            raise UserError(f"{row.place} has no question")
        given = row.one_or_texts("answers") if told else ()
        scores: Any = ()
        if given:
            scores = vqa_scores(given).items() if metric == "vqa" else _answers.counted(given)
        several = given if isinstance(row.get("answers"), list) else ()
        kind, name = str(row.get("kind", "")), row.get("id")
        yield Example(row.question("question"), (image,), tuple(scores), several, kind, id=name)


def _images(columns: Columns, rows: list[Row], split: str) -> list[str]:
    """What each row's picture is called: its row, or the name in it."""
    if columns.pictures(split):
        return [key_of(split, i) for i in range(len(rows))]
    for row in rows:
        if "image" not in row:
            raise UserError(f"{row.place} has no image")
    return [row.name("image") for row in rows]


class Mapped(OwnData):
    """Any data set of the hub or of disk, by the library datasets and a mapping of its columns."""

    def __init__(self) -> None:
        super().__init__("datasets")

    def check(self, settings: Any) -> None:
        if importlib.util.find_spec("datasets") is None:
            raise UserError("data datasets is read by the library datasets; get it with: pip install datasets")
        super().check(settings)

    def check_folder(self, settings: Any) -> None:
        """The rows may hold their pictures, so that there need not be a folder."""
        if settings.data_dir is not None:
            super().check_folder(settings)

    def specs(self, settings: Any) -> dict[str, TaskSpec]:
        return {name: task_of(name, given)[0] for name, given in settings.datasets.items()}

    def store(self, host: Any, spec: TaskSpec, settings: Any, tokenizer: Any, split: str) -> Any:
        columns = task_of(spec.name, settings.datasets[spec.name])[1]
        splits = settings.splits[spec.name][split]
        inside = [columns.pictures(one) for one in splits]
        if any(inside) and not all(inside):
            raise UserError(
                f"datasets.{spec.name}: {columns.image} holds pictures in some of {', '.join(splits)} alone"
            )
        if not inside[0] and settings.data_dir is None:
            raise UserError(
                f"data_dir must be the folder of the images that datasets.{spec.name}.image names, got None"
            )
        made = host.store(spec, dataclasses.replace(settings, data_dir=settings.data_dir or "."), tokenizer, split)
        if not inside[0]:
            return made
        if not isinstance(made, ImageFiles):
            raise UserError(
                f"datasets.{spec.name}: {columns.image} holds pictures, and {host.words} reads features by name: "
                "compute them (petx data features) and let image name a column of their names"
            )
        return Pictures(columns, made)


SOURCE = Mapped()
