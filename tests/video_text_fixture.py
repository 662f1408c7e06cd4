"""Writes a few videos' features, questions, captions and subtitles in VL-PET's formats."""

import json

import numpy as np

WIDTH = 6
FRAMES = {"a": 3, "b": 12, "c": 5}
SPLITS = {
    "tvqa": {"train": ["train"], "dev": ["val"], "test": ["val"]},
    "yc2c": {"train": ["train_release"], "dev": ["val_release"], "test": ["val_release"]},
}


def write_data(folder):
    for videos in ("tv", "yc2"):
        features = folder / "vis_features" / videos / "clip-vit"
        features.mkdir(parents=True)
        for name, frames in FRAMES.items():
            values = np.random.default_rng(frames).normal(size=(frames, WIDTH)).astype(np.float32)
            np.savez(features / f"{name}.npz", features=values)
    said = [{"text": "red", "start": 0.0, "end": 1.0}, {"text": "green", "start": 5.0, "end": 6.0}]
    _write(folder / "ann" / "tv_subtitles.jsonl", [{"vid_name": name, "sub": said} for name in FRAMES])
    question = {"q": "what color is it?", "ts": "0.50-2.00", "show_name": "x"}
    question |= {f"a{i}": colour for i, colour in enumerate(("red", "blue", "green", "dark", "thing"))}
    for split in ("train", "val"):
        rows = [question | {"qid": i, "vid_name": name, "answer_idx": i} for i, name in enumerate(FRAMES)]
        _write(folder / "ann" / "tvqa" / f"tvqa_{split}.jsonl", rows)
        clips = [
            {"vid_name": name, "duration": 9.0, "ts": [0.0, 4.0], "clip_id": i, "descs": [{"desc": "a red thing"}] * 2}
            for i, name in enumerate(FRAMES)
        ]
        _write(folder / "ann" / "yc2c" / f"yc2c_{split}_release.jsonl", clips)
    return folder


def _write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
