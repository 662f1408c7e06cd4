"""What a run trains and scores on: the tasks of each split, made from easy-VQA or from data in VL-PET's formats."""

import dataclasses
from pathlib import Path

from petx.data import easy_vqa, image_text, packages, video_text
from petx.data.features import STRIDE, ImageEncoder, grid_boxes, image_features, read_image
from petx.data.image_text import PROMPTS
from petx.data.tasks import ArrayFeatures, Example, Task
from petx.data.tokenizer import word_tokenizer
from petx.errors import UserError
from petx.train import arms, host

_FORMATS = {"image-text": image_text, "video-text": video_text}
MAX_ANSWER = 4  # tokens of an easy-VQA answer, its end included, with room


@dataclasses.dataclass
class RunData:
    tokenizer: object
    train: list
    dev: list
    test: list
    pretraining: list = dataclasses.field(default_factory=list)  # tasks the small host is pretrained on
    baselines: dict = dataclasses.field(default_factory=dict)  # {name: {"dev": scores, "test": scores}}


def check_available(settings):
    """Raise :class:`UserError` if something the run will read is missing or too small, before any work."""
    if settings.data == "easy-vqa":
        packages.require("easy-vqa", "efficientnet-lite0")
        _easy_vqa_questions(settings)
        if settings.image_size < STRIDE or settings.image_size % STRIDE:
            raise UserError(f"image_size must be a positive multiple of {STRIDE}, got {settings.image_size}")
        return
    if settings.data_dir is None or not Path(settings.data_dir).is_dir():
        raise UserError(f"data_dir must be the folder of the data, got {settings.data_dir!r}")
    if settings.host is None:
        raise UserError("host must name a pretrained BART or T5 (folder or hub name), got None")
    known = _FORMATS[settings.data].OPTIONS
    for name in settings.tasks:
        if name not in known:
            raise UserError(f"unknown task {name!r} of {settings.data}; there are: {', '.join(known)}")
        for split in ("train", "dev", "test"):
            given = settings.splits.get(name, {}).get(split)
            if not isinstance(given, list):
                raise UserError(f"splits.{name}.{split} must be a list of split names, got {given!r}")
    for arm in arms.ON_RANDOM_HOST:
        if arm in settings.all_arms:
            raise UserError(f"arm {arm} is for the small host of easy-vqa")


def load(settings):
    """The :class:`RunData` that ``settings`` ask for; :class:`UserError` for what is missing or does not fit."""
    return easy_vqa_data(settings) if settings.data == "easy-vqa" else own_data(settings)


def own_data(settings):
    """The tasks under ``data_dir``, for a pretrained host: :mod:`petx.data.image_text`, :mod:`petx.data.video_text`."""
    tokenizer = host.pretrained_tokenizer(settings)
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
    folder, train, dev, test = _easy_vqa_questions(settings)
    images = easy_vqa.images_of([*train, *dev, *test])
    arrays = image_features([folder / "data" / image for image in images], settings.image_size)
    features = ArrayFeatures(arrays, images, grid_boxes(settings.image_size // STRIDE))

    captions = easy_vqa.captions(train)
    texts = [PROMPTS["vqa"], PROMPTS["caption"]]
    texts += [f"{question.text} {question.answer}" for question in train] + [caption for _, caption in captions]
    tokenizer = word_tokenizer(texts, visual_tokens=arrays.shape[1])

    def questions(name, chosen):
        examples = [
            Example(PROMPTS["vqa"] + question.text, (question.image,), ((question.answer, 1.0),), kind=question.kind)
            for question in chosen
        ]
        return Task(name, examples, features, tokenizer, max_text=20, max_target=MAX_ANSWER, metric="exact")

    what = questions("what", [question for question in train if question.kind != "yes/no"])
    captions = [Example(PROMPTS["caption"], (image,), ((caption, 1.0),)) for image, caption in captions]
    data = RunData(
        tokenizer,
        train=[questions("vqa", train)],
        dev=[questions("vqa", dev)],
        test=[questions("vqa", test)],
        pretraining=[Task("caption", captions, features, tokenizer, max_target=6, metric="exact"), what],
    )
    majority = easy_vqa.majority_answer(train)
    for split, chosen, task in (("dev", dev, data.dev[0]), ("test", test, data.test[0])):
        answers = {"majority": [majority] * len(chosen), "blind": easy_vqa.blind_answers(train, chosen)}
        for name, guesses in answers.items():
            data.baselines.setdefault(name, {})[split] = task.score(guesses)
    return data


def encode_image(path, settings):
    """``(features [1, V, F], boxes [1, V, 4])`` of one image file, as in :func:`easy_vqa_data`."""
    features = ImageEncoder()(read_image(path, settings.image_size).unsqueeze(0))
    return features, grid_boxes(settings.image_size // STRIDE).unsqueeze(0)


def _easy_vqa_questions(settings):
    """The package's folder and the questions of train, dev and test, of as many images as ``settings`` want."""
    folder = packages.require("easy-vqa")["easy_vqa"]
    train, test = easy_vqa.read_questions(folder, "train"), easy_vqa.read_questions(folder, "test")
    train, dev = easy_vqa.split_by_image(train, _at_most("dev_images", settings.dev_images, train, left_over=1))
    if settings.train_images is not None:
        train = easy_vqa.keep_images(train, _at_most("train_images", settings.train_images, train))
    if settings.test_images is not None:
        test = easy_vqa.keep_images(test, _at_most("test_images", settings.test_images, test))
    return folder, train, dev, test


def _at_most(name, count, questions, left_over=0):
    """``count``, if that many of the images of ``questions`` can be taken and ``left_over`` stay."""
    most = len(easy_vqa.images_of(questions)) - left_over
    if not 1 <= count <= most:
        raise UserError(f"{name} must be between 1 and {most}, got {count}")
    return count
