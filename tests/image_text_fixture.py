"""Writes a few examples of VQA, GQA, NLVR2 and captioning in VL-PET's formats, and a tiny BART to tune on them."""

import json
import random

import h5py
import numpy as np
import torch
from transformers import BartConfig, BartForConditionalGeneration

from petx.data.tokenizer import word_tokenizer

COLOURS = ("red", "blue", "green")
WIDTH, GRID = 8, 3  # of the feature files: [9, 8], pooled to 4 tokens by the tests

SPLITS = {
    "vqa": {"train": ["karpathy_train"], "dev": ["karpathy_val"], "test": ["karpathy_test"]},
    "gqa": {"train": ["train", "valid"], "dev": ["testdev"], "test": ["testdev"]},
    "nlvr": {"train": ["train"], "dev": ["valid"], "test": ["test"]},
    "caption": {"train": ["train", "restval"], "dev": ["val"], "test": ["test"]},
}


def write_data(folder, images=12, seed=0):
    """One colour an image, in its features and in every answer; returns ``folder``."""
    draw = random.Random(seed)
    names = [f"COCO_{i:04d}" for i in range(images)]
    colours = {name: i % len(COLOURS) for i, name in enumerate(names)}
    (folder / "features").mkdir(parents=True)
    for name in names:
        features = np.random.default_rng(colours[name]).normal(size=(GRID * GRID, WIDTH)).astype(np.float32)
        with h5py.File(folder / "features" / f"{name}.h5", "w") as file:
            file[f"{name}/features"] = features

    def rows(count):
        return [names[draw.randrange(images)] for _ in range(count)]

    for split in ("karpathy_train", "karpathy_val", "karpathy_test"):
        vqa = []
        for i, name in enumerate(rows(10)):
            answer = COLOURS[colours[name]]
            answers = [{"answer": answer}] * 9 + [{"answer": "dark"}]
            row = {"img_id": name, "question_id": i, "sent": "what color is it?", "answers": answers}
            vqa.append(row | {"label": {answer: 1.0, "dark": 0.3}})
        _write(folder / "vqa" / f"{split}.json", vqa)
    for split in ("train", "valid", "testdev"):
        gqa = [
            {"img_id": name, "question_id": i, "sent": "which color?", "label": {COLOURS[colours[name]]: 1.0}}
            for i, name in enumerate(rows(8))
        ]
        _write(folder / "GQA" / f"{split}.json", gqa)
    for split in ("train", "valid", "test"):
        pairs = list(zip(rows(6), rows(6), strict=True))
        nlvr = [
            {"uid": str(i), "img0": a, "img1": b, "sent": "the colors match.", "label": int(colours[a] == colours[b])}
            for i, (a, b) in enumerate(pairs)
        ]
        _write(folder / "nlvr" / f"{split}.json", nlvr)
    parts = ("train", "restval", "val", "test")
    captions = [
        {
            "filename": f"{name}.jpg",
            "split": parts[i % len(parts)],
            "sentences": [{"raw": f"a {COLOURS[colours[name]]} thing"}, {"raw": f"something {COLOURS[colours[name]]}"}],
        }
        for i, name in enumerate(names)
    ]
    _write(folder / "COCO" / "dataset_coco.json", {"images": captions})
    return folder


def write_host(folder):
    """A BART of a few thousand parameters, with its tokenizer, as a hub model would lie on disk."""
    texts = ["vqa: gpa: nlvr: caption: what which color is it? the colors match. a something thing dark true false"]
    tokenizer = word_tokenizer([*texts, *COLOURS], visual_tokens=0)
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        init_std=0.2,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
    )
    BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(own, output_dir, **more):
    """The paper's preset cut down to the data and the host below ``own``."""
    from petx.train.vlpet import arguments

    small = dict(data_dir=str(own / "data"), host=str(own / "bart"), output_dir=str(output_dir))
    small |= dict(feature_width=WIDTH, visual_tokens=4)
    small |= dict(rank=4, gate_rank=4, decoder_rank=4, heads=2, epochs=2, eval_batch_size=16)
    small |= dict(batch_sizes={"vqa": 4, "gqa": 5, "nlvr": 2, "caption": 3}, eval_every=8, save_every=4, log_every=2)
    return arguments.checked(arguments.read_preset("paper-bart-image") | small | more)


def _write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
