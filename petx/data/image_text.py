"""VQA, GQA, NLVR2 and captioning from JSON files and one h5 feature file an image, as VL-PET reads them.

Layout below the data folder: ``vqa/<split>.json``, ``GQA/<split>.json``, ``nlvr/<split>.json``,
``COCO/dataset_coco.json`` and ``features/<image>.h5`` holding the data set ``<image>/features``, ``[V, F]``.
"""

import dataclasses
import json
import math
from pathlib import Path

import torch

from petx.data.tasks import Example, Task
from petx.errors import UserError

# VL-PET's task prompts; "gpa" is the released code's spelling, kept so that its checkpoints read the same text.
PROMPTS = {"vqa": "vqa: ", "gqa": "gpa: ", "nlvr": "nlvr: ", "caption": "caption: "}


FEATURES_DIR = "features"  # below the data folder


class Features:
    """Grid features read from ``<folder>/<image>.h5`` when asked for; larger square grids are max-pooled to ``tokens``.

    ``self(image)`` gives features ``[tokens, width]`` and boxes ``[tokens, 4]``, all zero as CLIP grids have none.
    """

    def __init__(self, folder, width, tokens):
        try:
            import h5py
        except ImportError as error:
            raise UserError("image-text features are h5 files, read by h5py; get it with: pip install h5py") from error
        self.h5py, self.folder, self.width, self.tokens = h5py, Path(folder), width, tokens
        self.boxes = torch.zeros(tokens, 4)

    def path(self, image):
        return self.folder / f"{image}.h5"

    def check(self, images):
        """Raise :class:`UserError` if a file is missing, or the first is not as wanted."""
        for image in images:
            if not self.path(image).is_file():
                raise UserError(f"no feature file {self.path(image)}")
        for image in list(images)[:1]:
            self(image)

    def __call__(self, image):
        path = self.path(image)
        try:
            with self.h5py.File(path, "r") as file:
                features = torch.from_numpy(file[f"{image}/features"][:]).float()
        except (OSError, KeyError) as error:
            raise UserError(f"{path}: cannot read {image}/features: {error}") from error
        if features.dim() != 2 or features.shape[1] != self.width:
            raise UserError(
                f"{path}: features are {list(features.shape)}, of width {features.shape[-1]}; wanted [V, {self.width}] "
                "(feature_width)"
            )
        return self._pooled(features, path), self.boxes

    def _pooled(self, features, path):
        if len(features) == self.tokens:
            return features
        side, wanted = math.isqrt(len(features)), math.isqrt(self.tokens)
        if side * side != len(features) or wanted * wanted != self.tokens or side < wanted:
            raise UserError(f"{path}: {len(features)} visual tokens cannot be pooled to visual_tokens={self.tokens}")
        grid = features.T.reshape(1, self.width, side, side)
        return torch.nn.functional.adaptive_max_pool2d(grid, wanted).flatten(2)[0].T.contiguous()


def load_task(name, data_dir, splits, features, tokenizer, training):
    """The :class:`Task` ``name`` over ``splits``, its annotations checked; feature files are checked to be there."""
    examples = read_examples(name, data_dir, splits, training)
    examples = [dataclasses.replace(example, text=PROMPTS[name] + example.text) for example in examples]
    features.check(dict.fromkeys(image for example in examples for image in example.images))
    return Task(name, examples, features, tokenizer, **OPTIONS[name])


def read_examples(name, data_dir, splits, training):
    """The examples of task ``name`` in ``splits``, without a prompt; :class:`UserError` where there are none."""
    examples = [example for split in splits for example in READERS[name](Path(data_dir), split, training)]
    if not examples:
        raise UserError(f"{name}: no examples in {', '.join(splits)} under {data_dir}")
    return examples


# Text and answer lengths in tokens (prompt included), loss and inference of each task, as VL-PET has them.
OPTIONS = {
    "vqa": dict(max_text=20, max_target=10, metric="vqa"),
    "gqa": dict(max_text=20, max_target=10, metric="exact"),
    "nlvr": dict(max_target=3, metric="exact", choices=("false", "true")),
    "caption": dict(max_target=40, metric="caption", loss="token", num_beams=5),
}


def _vqa(data_dir, split, training):
    path = data_dir / "vqa" / f"{split}.json"
    for row in _rows(path, "img_id", "sent", *(["label"] if training else ["answers"])):
        annotators = tuple(given["answer"] for given in row.get("answers", ()))
        labels = tuple(row.get("label", {}).items()) or (("", 0.0),)
        yield Example(row["sent"], (row["img_id"],), labels, references=annotators)


def _gqa(data_dir, split, training):
    for row in _rows(data_dir / "GQA" / f"{split}.json", "img_id", "sent", "label"):
        label = row["label"]
        answer = max(label, key=label.get) if isinstance(label, dict) else label
        yield Example(row["sent"], (row["img_id"],), ((answer, 1.0),))


def _nlvr(data_dir, split, training):
    for row in _rows(data_dir / "nlvr" / f"{split}.json", "img0", "img1", "sent", "label"):
        answer = "true" if row["label"] == 1 else "false"
        yield Example(row["sent"], (row["img0"], row["img1"]), ((answer, 1.0),))


def _caption(data_dir, split, training):
    for row in _rows(data_dir / "COCO" / "dataset_coco.json", "filename", "split", "sentences", key="images"):
        if row["split"] == split:
            images = (Path(row["filename"]).stem,)
            texts = tuple(sentence["raw"].strip() for sentence in row["sentences"])
            for text in texts if training else texts[:1]:  # trained on every sentence, scored once an image
                yield Example("", images, ((text, 1.0),), references=texts)


READERS = {"vqa": _vqa, "gqa": _gqa, "nlvr": _nlvr, "caption": _caption}


def _rows(path, *needed, key=None):
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        rows = rows if key is None else rows[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read annotations from {path}: {error!r}") from error
    for i, row in enumerate(rows):
        for name in needed:
            if name not in row:
                raise UserError(f"{path}: entry {i} has no {name!r}")
    return rows
