"""What VL-PET's recipe trains and scores on: easy-VQA, or data in the paper's formats."""

from pathlib import Path

import torch

from petx import hosts
from petx.data import image_text, video_text
from petx.data.image_text import PROMPTS
from petx.data.tasks import Task
from petx.data.tokenizer import unknown_words, word_tokenizer
from petx.errors import UserError
from petx.train.data import MAX_ANSWER, RunData, check_easy_vqa, check_own_data, encode_image, load_easy_vqa

_FORMATS = {"image-text": image_text, "video-text": video_text}


def check_data(settings):
    """Raise :class:`UserError` if something the run will read is missing or too small, before any work."""
    if settings.data == "easy-vqa":
        check_easy_vqa(settings)
    else:
        check_own_data(settings, _FORMATS[settings.data].OPTIONS, hosts.wanted("vlpet"))


def load(settings, host):
    """The :class:`RunData` that ``settings`` ask for; :class:`UserError` for what is missing or does not fit."""
    return easy_vqa_data(settings) if settings.data == "easy-vqa" else own_data(settings, host)


def own_data(settings, host):
    """The tasks under ``data_dir``, for a pretrained host: :mod:`petx.data.image_text`, :mod:`petx.data.video_text`."""
    tokenizer = host.pretrained_tokenizers(settings)
    form = _FORMATS[settings.data]
    folder = Path(settings.features_dir or Path(settings.data_dir, form.FEATURES_DIR))
    features = form.Features(folder, settings.feature_width, settings.visual_tokens)

    def tasks(split):
        files = {name: settings.splits[name][split] for name in settings.tasks}
        return [
            form.load_task(name, settings.data_dir, chosen, features, tokenizer, training=split == "train")
            for name, chosen in files.items()
        ]

    return RunData(tokenizer, train=tasks("train"), dev=tasks("dev"), test=tasks("test"))


def easy_vqa_data(settings):
    """easy-VQA: the whole of VQA as the task to tune on; captions and "what" questions to pretrain a host with.

    The development split is all questions on ``dev_images`` training images; nothing else is done with those.
    """
    source = load_easy_vqa(settings)
    texts = [PROMPTS["vqa"], PROMPTS["caption"], *source.texts()]
    tokenizer = word_tokenizer(texts, visual_tokens=source.features.features.shape[1])

    def task(name, examples, max_target=MAX_ANSWER, **limits):
        return Task(name, examples, source.features, tokenizer, max_target=max_target, metric="exact", **limits)

    vqa = {
        split: task("vqa", source.questions(split, prompt=PROMPTS["vqa"]), max_text=20)
        for split in ("train", "dev", "test")
    }
    what = source.questions("train", only_what=True, prompt=PROMPTS["vqa"])
    return RunData(
        tokenizer,
        **{split: [vqa[split]] for split in vqa},
        pretraining=[
            task("caption", source.captions(PROMPTS["caption"]), max_target=6),
            task("what", what, max_text=20),
        ],
        baselines=source.baselines({split: vqa[split] for split in ("dev", "test")}),
    )


def question_item(loaded, image, question):
    """One question on an image file, as :class:`petx.data.tasks.Task` gives them."""
    settings, tokenizer = loaded.settings, loaded.tokenizer
    if settings.data != "easy-vqa":
        raise UserError("petx predict encodes images by EfficientNet-Lite0, which this model was not trained with")
    features, boxes = encode_image(image, settings)
    task = Task("vqa", [], None, tokenizer, max_target=MAX_ANSWER, metric="exact")
    return {
        "input_ids": task.encode(PROMPTS["vqa"] + question),
        "labels": task.encode(""),
        "visual_features": features[0],
        "boxes": boxes[0],
        "image_ids": torch.zeros(len(boxes[0]), dtype=torch.long),
        "weight": 1.0,
        "loss": "sample",
        "max_target": MAX_ANSWER,
        "unknown": unknown_words(question, tokenizer),
    }
