"""A tiny InstructBLIP with its processor, as a hub model would lie on disk, and image files with questions for it."""

import json

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import (
    BlipImageProcessorPil,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
    T5Config,
)

from petx.data.tokenizer import word_tokenizer

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 220)}
SPLITS = {"vqa": {"train": ["train"], "dev": ["val"], "test": ["val"]}}
SPLITS |= {"caption": {"train": ["train"], "dev": ["val"], "test": ["val"]}}
_TEXTS = ["question: what color is it? short answer describe a photo of the something thing dark", *COLOURS]


def write_host(folder, language_model="t5", zero_queries=False, seed=0):
    """Save the model and its processor in ``folder``; 32 x 32 pixels, all widths 32."""
    tokenizer = word_tokenizer(_TEXTS, visual_tokens=0)
    tokenizer.add_tokens([AddedToken("<image>", special=True)], special_tokens=True)
    qformer_tokenizer = word_tokenizer(_TEXTS, visual_tokens=0)
    ids = dict(pad_token_id=1, eos_token_id=2, bos_token_id=0, vocab_size=len(tokenizer))
    if language_model == "t5":
        sizes = dict(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_decoder_layers=1, num_heads=4)
        text = T5Config(**ids, **sizes, decoder_start_token_id=0, dropout_rate=0.0)
    else:
        sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
        text = LlamaConfig(**ids, **sizes, num_key_value_heads=4, max_position_embeddings=64, initializer_range=0.2)
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=32)
    qformer = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=1)
    qformer |= dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.2)
    config = InstructBlipConfig(
        vision_config=vision | dict(patch_size=8, initializer_range=0.1),
        qformer_config=qformer | dict(vocab_size=len(qformer_tokenizer), max_position_embeddings=40),
        text_config=text.to_dict(),
        num_query_tokens=3,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(seed)
    model = InstructBlipForConditionalGeneration(config)
    if not zero_queries:
        torch.nn.init.normal_(model.query_tokens, std=0.2)
    model.save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    InstructBlipProcessor(images, tokenizer, qformer_tokenizer, num_query_tokens=3).save_pretrained(folder)
    return folder


def write_data(folder, images=9):
    """One colour an image, asked for in vqa/{train,val}.json and told in COCO/dataset_coco.json; returns ``folder``."""
    (folder / "images").mkdir(parents=True)
    names = list(COLOURS)
    for i in range(images):
        pixels = np.full((40, 36, 3), COLOURS[names[i % 3]], dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    for split in ("train", "val"):
        rows = []
        for i in range(images):
            colour = names[i % 3]
            row = {"img_id": str(i), "question_id": i, "sent": "What color is it?", "label": {colour: 1.0, "dark": 0.3}}
            rows.append(row | {"answers": [{"answer": colour}] * 3})
        _write(folder / "vqa" / f"{split}.json", rows)
    captions = [
        {"filename": f"{i}.png", "split": split, "sentences": [{"raw": f"A {names[i % 3]} thing."}]}
        for split in ("train", "val")
        for i in range(images)
    ]
    _write(folder / "COCO" / "dataset_coco.json", {"images": captions})
    return folder


def settings(folder, output_dir, **more):
    """A paper's preset cut down to the host and the data below ``folder``."""
    from petx.train.petal import arguments

    small = dict(data_dir=str(folder / "data"), host=str(folder / "host"), output_dir=str(output_dir), dtype="float32")
    small |= dict(splits=SPLITS, rank=4, expert_rank=4, experts=2, epochs=2, batch_size=4, workers=0, lr=1e-2)
    small |= dict(eval_every=4, save_every=4, log_every=2, max_target={"vqa": 6, "caption": 8})
    small |= dict(generation={"num_beams": 1, "max_new_tokens": 4})
    return arguments.checked(arguments.read_preset("paper-okvqa") | small | more)


def _write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
