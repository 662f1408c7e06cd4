"""What a run trains and scores on; easy-VQA's splits, features and baselines, which every recipe's main job uses."""

import dataclasses
from pathlib import Path

from petx import baselines
from petx.data import easy_vqa, packages
from petx.data.features import STRIDE, ImageEncoder, grid_boxes, image_features, read_image
from petx.data.tasks import ArrayFeatures, Example
from petx.errors import UserError

MAX_ANSWER = 4  # tokens of an easy-VQA answer, its end included, with room


@dataclasses.dataclass
class RunData:
    tokenizer: object
    train: list
    dev: list
    test: list
    pretraining: list = dataclasses.field(default_factory=list)  # tasks the small host is pretrained on
    feature_stats: tuple | None = None  # mean and standard deviation of the training images' features, by channel
    baselines: dict = dataclasses.field(default_factory=dict)  # {name: {"dev": scores, "test": scores}}


@dataclasses.dataclass
class EasyVQA:
    """easy-VQA cut into train, dev and test by image; dev is all questions on some of the training images."""

    features: ArrayFeatures
    train: list
    dev: list
    test: list

    def texts(self):
        """All text of the training split: what a word-level vocabulary is made of."""
        return [f"{question.text} {question.answer}" for question in self.train] + [
            caption for _, caption in easy_vqa.captions(self.train)
        ]

    def questions(self, split, *, only_what=False, prompt=""):
        return [
            Example(prompt + question.text, (question.image,), ((question.answer, 1.0),), kind=question.kind)
            for question in getattr(self, split)
            if not (only_what and question.kind == "yes/no")
        ]

    def captions(self, text):
        """Examples that answer ``text`` with a training image's caption, such as "a red circle"."""
        return [Example(text, (image,), ((caption, 1.0),)) for image, caption in easy_vqa.captions(self.train)]

    def baselines(self, tasks):
        """Scores without a model; ``tasks``: ``{split: Task}`` over the questions of dev and test."""
        scores = {}
        majority = easy_vqa.majority_answer(self.train)
        for split, task in tasks.items():
            questions = getattr(self, split)
            answers = {"majority": [majority] * len(questions), "blind": easy_vqa.blind_answers(self.train, questions)}
            for name, guesses in answers.items():
                scores.setdefault(name, {})[split] = task.score(guesses)
        return scores


def check_easy_vqa(settings):
    """Raise :class:`UserError` if easy-VQA or the image encoder is missing, or ``settings`` ask for too much of it."""
    packages.require("easy-vqa", "efficientnet-lite0")
    _easy_vqa_questions(settings)
    if settings.image_size < STRIDE or settings.image_size % STRIDE:
        raise UserError(f"image_size must be a positive multiple of {STRIDE}, got {settings.image_size}")


def check_own_data(settings, known, wanted_host):
    """The same for data of one's own; ``known``: names of the format's tasks."""
    if settings.data_dir is None or not Path(settings.data_dir).is_dir():
        raise UserError(f"data_dir must be the folder of the data, got {settings.data_dir!r}")
    if settings.host is None:
        raise UserError(f"host must name a pretrained {wanted_host} (folder or hub name), got None")
    for name in settings.tasks:
        if name not in known:
            raise UserError(f"unknown task {name!r} of {settings.data}; there are: {', '.join(known)}")
        for split in ("train", "dev", "test"):
            given = settings.splits.get(name, {}).get(split)
            if not isinstance(given, list):
                raise UserError(f"splits.{name}.{split} must be a list of split names, got {given!r}")
    for arm in settings.all_arms:
        if baselines.find(arm, settings.recipe).random_host:
            raise UserError(f"arm {arm} is for the small host of easy-vqa")


def load_easy_vqa(settings):
    """:class:`EasyVQA` with the images' features, computed or read from the cache."""
    folder, train, dev, test = _easy_vqa_questions(settings)
    images = easy_vqa.images_of([*train, *dev, *test])
    arrays = image_features([folder / "data" / image for image in images], settings.image_size)
    features = ArrayFeatures(arrays, images, grid_boxes(settings.image_size // STRIDE))
    return EasyVQA(features, train, dev, test)


def encode_image(path, settings):
    """``(features [1, V, F], boxes [1, V, 4])`` of one image file, as in :func:`load_easy_vqa`."""
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
