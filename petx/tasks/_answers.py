"""What tasks of questions share: annotators' answers, and the official question and annotation files of VQA and OK-VQA.

``<prefix>OpenEnded_mscoco_<split>_questions.json`` holds ``questions: [{question_id, image_id, question}]``, and
``<prefix>mscoco_<split>_annotations.json``, which test splits lack, ``annotations: [{question_id, answer_type,
answers: [{answer}]}]``.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from petx.data.examples import Example
from petx.data.rows import Row, json_rows
from petx.errors import UserError
from petx.metrics import vqa_scores


def counted(given: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    """Each different answer with its share of all."""
    return tuple((answer, count / len(given)) for answer, count in Counter(given).items())


def texts(row: Row, field: str) -> tuple[str, ...]:
    """The annotators' answers in a list, none of which is refused."""
    if row[field] == []:
        raise UserError(f"{row.place} has no answer in {field!r}")
    return row.texts(field, "answer")


def questions_file(folder: Path, prefix: str, split: str) -> Path:
    """The official question file of a split; ``prefix``: ``v2_`` for VQA v2."""
    return folder / f"{prefix}OpenEnded_mscoco_{split}_questions.json"


def annotations_file(folder: Path, prefix: str, split: str) -> Path:
    """The official annotation file of a split."""
    return folder / f"{prefix}mscoco_{split}_annotations.json"


def annotations(*files: Path) -> dict[str, Row]:
    """``{question_id: annotation}`` of the official annotation files."""
    rows = [row for file in files for row in json_rows(file, "question_id", "answers", key="annotations")]
    return {row.name("question_id"): row for row in rows}


def annotation_of(row: Row, known: dict[str, Row], where: str) -> Row:
    """The annotation of a question; UserError if there is none."""
    name = row.name("question_id")
    if name not in known:
        raise UserError(f"{row.place}: question_id {name} is not in {where}")
    return known[name]


def official(folder: Path, prefix: str, split: str, training: bool) -> Iterator[Example]:
    """The examples of an official question file, its answers from the annotation file if that is there."""
    asked = json_rows(questions_file(folder, prefix, split), "question_id", "image_id", "question", key="questions")
    file = annotations_file(folder, prefix, split)
    known = annotations(file) if training or file.is_file() else None
    part = split.replace("test-dev", "test")  # whose images are the same
    for row in asked:
        image = f"{part}/COCO_{part}_{row.number('image_id', 0, 10**12 - 1):012d}.jpg"
        given: tuple[str, ...] = ()
        scored: tuple[tuple[str, float], ...] = ()
        kind = ""
        if known is not None:
            note = annotation_of(row, known, str(file))
            given, kind = texts(note, "answers"), str(note.get("answer_type", ""))
            scored = tuple(vqa_scores(given).items())
        yield Example(row.question("question"), (image,), scored, given, kind, id=row["question_id"])
