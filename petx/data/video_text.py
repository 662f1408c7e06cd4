"""TVQA, How2QA, TVC and YC2C from JSON lines and one npz feature file a video, as VL-PET reads them.

Layout below the data folder: ``ann/<task>/<task>_<split>.jsonl``, ``ann/{tv,how2,yc2}_subtitles.jsonl`` and
``vis_features/{tv,how2,yc2}/clip-vit/<video>.npz`` holding ``features``, ``[T, F]``.
"""

import json
import zipfile
from pathlib import Path

import numpy as np
import torch

from petx.data.tasks import Example, Task
from petx.errors import UserError

FEATURES_DIR = "vis_features"  # below the data folder
VIDEOS = {"tvqa": "tv", "tvc": "tv", "how2qa": "how2", "yc2c": "yc2"}  # whose features and subtitles a task uses
MAX_TEXT, MAX_ANSWER = 600, 20  # tokens
_QUESTION = dict(max_target=MAX_ANSWER, metric="exact")
_CAPTION = dict(max_target=MAX_ANSWER, metric="caption", loss="token", num_beams=5)
OPTIONS = {"tvqa": _QUESTION, "how2qa": _QUESTION, "tvc": _CAPTION, "yc2c": _CAPTION}


class Features:
    """Frame features brought to ``tokens``: longer videos are max-pooled over time, shorter ones filled with zeros.

    ``self((videos, video))`` gives features ``[tokens, width]`` and boxes ``[tokens, 4]``, all zero.
    """

    def __init__(self, folder, width, tokens):
        self.folder, self.width, self.tokens = Path(folder), width, tokens
        self.boxes = torch.zeros(tokens, 4)

    def path(self, key):
        videos, video = key
        return self.folder / videos / "clip-vit" / f"{video}.npz"

    def check(self, keys):
        """Raise :class:`UserError` if a file is missing, or the first is not as wanted."""
        for key in keys:
            if not self.path(key).is_file():
                raise UserError(f"no feature file {self.path(key)}")
        for key in list(keys)[:1]:
            self(key)

    def __call__(self, key):
        path = self.path(key)
        try:
            with np.load(path) as file:
                features = torch.from_numpy(file["features"]).float()
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: cannot read features: {error}") from error
        if features.dim() != 2 or features.shape[1] != self.width:
            raise UserError(
                f"{path}: features are {list(features.shape)}, of width {features.shape[-1]}; wanted [T, {self.width}] "
                "(feature_width)"
            )
        if len(features) > self.tokens:
            return torch.nn.functional.adaptive_max_pool1d(features.T, self.tokens).T.contiguous(), self.boxes
        return torch.nn.functional.pad(features, (0, 0, 0, self.tokens - len(features))), self.boxes


def load_task(name, data_dir, splits, features, tokenizer, training):
    """The :class:`Task` ``name`` over ``splits``; annotations and the presence of feature files are checked."""
    annotations = Path(data_dir) / "ann"
    subtitles = _subtitles(annotations / f"{VIDEOS[name]}_subtitles.jsonl")
    read = _questions if OPTIONS[name] is _QUESTION else _captions
    examples = []
    for split in splits:
        for row in _rows(annotations / name / f"{name}_{split}.jsonl", *_NEEDED[read]):
            first, last = map(float, row["ts"].split("-") if isinstance(row["ts"], str) else row["ts"])
            lines = subtitles.get(row["vid_name"], ())
            said = " ".join(text for text, start, end in lines if start <= last and end >= first)
            span = f"[TS] ({first:.2f}-{last:.2f})"
            examples += read(name, row, said, span, tokenizer, training)
    if not examples:
        raise UserError(f"{name}: no examples in {', '.join(splits)} under {data_dir}")
    features.check(dict.fromkeys(key for example in examples for key in example.images))
    return Task(name, examples, features, tokenizer, **OPTIONS[name])


def _questions(name, row, said, span, tokenizer, training):
    choices = [key for key in ("a0", "a1", "a2", "a3", "a4") if key in row]
    listed = " ".join(f"{key}: {row[key]}" for key in choices)
    text = f"[Q] {row['q']} {span} [Choices] {listed} {name}: "
    answer = choices[row["answer_idx"]]
    yield Example(_fitted(said, text, tokenizer), ((VIDEOS[name], row["vid_name"]),), ((answer, 1.0),))


def _captions(name, row, said, span, tokenizer, training):
    text = _fitted(said, f"{span} {name}: ", tokenizer)
    described = tuple(given["desc"].strip() for given in row["descs"])
    for caption in described if training else described[:1]:  # trained on every description, scored once a clip
        yield Example(text, ((VIDEOS[name], row["vid_name"]),), ((caption, 1.0),), references=described)


_NEEDED = {_questions: ("vid_name", "q", "ts", "a0", "answer_idx"), _captions: ("vid_name", "ts", "descs")}


def _fitted(said, rest, tokenizer):
    """``[Subs] said rest`` in at most ``MAX_TEXT`` tokens: what is too long is cut from the end of the subtitles."""
    room = MAX_TEXT - len(tokenizer(f"[Subs] {rest}")["input_ids"])
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    if len(ids) > room:
        said = tokenizer.decode(ids[: max(room, 0)])
    return f"[Subs] {said} {rest}"


def _subtitles(path):
    """``{video: [(text, start, end)]}``, none where the file is not there: not every set has subtitles."""
    if not path.is_file():
        return {}
    rows = _rows(path, "vid_name", "sub")
    return {row["vid_name"]: [(line["text"], line["start"], line["end"]) for line in row["sub"]] for row in rows}


def _rows(path, *needed):
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read annotations from {path}: {error!r}") from error
    for i, row in enumerate(rows):
        for name in needed:
            if name not in row:
                raise UserError(f"{path}: line {i + 1} has no {name!r}")
    return rows
