"""easy-VQA: questions on images of one coloured shape, which every recipe's main job uses.

Read from its package and cut by image into train, dev and test; its features, the tasks that a small host is
pretrained on, and the scores that need no model.
"""

import dataclasses
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from petx._memory import memory
from petx.data import packages
from petx.data.examples import Example, drawn
from petx.data.features import STRIDE, grid_boxes, image_features
from petx.data.stores import ArrayFeatures, ImageFiles
from petx.errors import UserError
from petx.tasks._packaged import Packaged, check_image_size, feature_stats, repeated_words
from petx.tasks.base import RunData, TaskSpec

MAX_ANSWER = 4  # tokens of an answer, its end included, with room
QUESTIONS = TaskSpec("vqa", prompt="vqa: ", max_text=20, max_target=MAX_ANSWER)
MATCHES = ("yes", "no")  # a caption is the image's, or another's
LESSONS = {  # what a small host can be pretrained on
    "caption": TaskSpec(
        "caption", title="captions", prompt="caption: ", templates=("describe the image",), max_target=6
    ),
    "what": TaskSpec("what", title="'what' questions", prompt="vqa: ", max_text=20, max_target=MAX_ANSWER),
    "words": TaskSpec("words", title="repeating words", templates=("say {q}",), max_target=6),
    "match": TaskSpec(
        "match",
        title="matching captions",
        templates=("match {q}",),
        language_template="match",
        max_target=MAX_ANSWER,
        choices=MATCHES,
    ),
}
PARTS = {  # tasks of their own to train on, by the kind of question, and captions
    "yes-no": dataclasses.replace(QUESTIONS, name="yes-no"),
    "colour": dataclasses.replace(QUESTIONS, name="colour"),
    "shape": dataclasses.replace(QUESTIONS, name="shape"),
    "caption": LESSONS["caption"],
}
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
CAPTION_WORDS = {"colour": COLOURS, "shape": SHAPES}
CAPTION_FORMS = {"a {colour} {shape}": ("colour", "shape"), "a {colour} shape": ("colour",), "a {shape}": ("shape",)}


@dataclasses.dataclass(frozen=True)
class Question:
    text: str
    answer: str
    image: str  # path of its file, relative to the package's data folder

    @property
    def kind(self) -> str:
        """``colour``, ``shape`` or ``yes/no``, by the answer."""
        return "colour" if self.answer in COLOURS else "shape" if self.answer in SHAPES else "yes/no"


def read_questions(folder: str | Path, split: str) -> list[Question]:
    """The questions of ``split`` (``train`` or ``test``) from the package folder ``folder``."""
    path = Path(folder) / "data" / split / "questions.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [Question(text, answer, f"{split}/images/{image}.png") for text, answer, image in rows]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"easy-vqa's {path} is damaged ({error}); {packages.again('easy-vqa')}") from error


def examples_of(questions: list[Question]) -> list[Example]:
    """``questions`` as examples, in order."""
    return [Example(one.text, (one.image,), ((one.answer, 1.0),), kind=one.kind) for one in questions]


def images_of(questions: list[Question]) -> list[str]:
    """The images of ``questions``, each once, in a fixed order."""
    return sorted({question.image for question in questions})


def keep_images(questions: list[Question], count: int, seed: int = 0) -> list[Question]:
    """The questions on ``count`` images chosen by ``seed``."""
    chosen = set(random.Random(seed).sample(images_of(questions), count))
    return [question for question in questions if question.image in chosen]


def split_by_image(questions: list[Question], count: int, seed: int = 0) -> tuple[list[Question], list[Question]]:
    """``(rest, held_out)``: all questions on ``count`` images, chosen by ``seed``, are held out."""
    held_out = keep_images(questions, count, seed)
    images = {question.image for question in held_out}
    return [question for question in questions if question.image not in images], held_out


def captions(questions: list[Question]) -> list[tuple[str, str]]:
    """``(image, "a red circle")`` for every image whose "what" questions tell both its colour and its shape.

    Yes/no questions are not looked at: they are the new task.
    """
    told: dict[str, set[str]] = defaultdict(set)
    for question in questions:
        if question.kind != "yes/no":
            words = {question.answer, *re.findall(r"\w+", question.text)}
            told[question.image] |= words.intersection(COLOURS + SHAPES)
    found = []
    for image in images_of(questions):
        colour, shape = told[image].intersection(COLOURS), told[image].intersection(SHAPES)
        if colour and shape:
            found.append((image, f"a {min(colour)} {min(shape)}"))
    return found


def lesson_words(lessons: tuple[str, ...]) -> str:
    """``lessons`` in words: "captions and 'what' questions"."""
    *others, last = [LESSONS[one].title for one in lessons]
    return f"{', '.join(others)} and {last}" if others else last


def majority_answer(questions: list[Question]) -> str:
    return Counter(question.answer for question in questions).most_common(1)[0][0]


def blind_answers(train: list[Question], questions: list[Question]) -> list[str]:
    """The most frequent training answer to each question's exact text: the best anyone does without the image."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        counts[question.text][question.answer] += 1
    fallback = majority_answer(train)
    best = {text: counter.most_common(1)[0][0] for text, counter in counts.items()}
    return [best.get(question.text, fallback) for question in questions]


@dataclasses.dataclass
class EasyVQA:
    """easy-VQA cut into train, dev and test by image; dev is all questions on some of the training images."""

    features: ArrayFeatures
    train: list[Question]
    dev: list[Question]
    test: list[Question]

    def texts(self) -> list[str]:
        """All text of the training split: what a word-level vocabulary is made of."""
        return [f"{question.text} {question.answer}" for question in self.train] + [
            caption for _, caption in captions(self.train)
        ]

    def questions(self, split: str, *, only_what: bool = False) -> list[Example]:
        chosen = getattr(self, split)
        return examples_of([one for one in chosen if not (only_what and one.kind == "yes/no")])

    def part(self, name: str) -> list[Example]:
        """The training examples of one of :data:`PARTS`."""
        if name == "caption":
            return self.captions()
        kind = name.replace("-", "/")
        return examples_of([one for one in self.train if one.kind == kind])

    def captions(self) -> list[Example]:
        """Examples that answer nothing with a training image's caption, such as "a red circle"."""
        return [Example("", (image,), ((caption, 1.0),)) for image, caption in captions(self.train)]

    def words(self) -> list[Example]:
        """Examples that repeat words of the training text, those of yes/no questions too."""
        return repeated_words(images_of(self.train), self.texts())

    def matches(self) -> list[Example]:
        """Examples that tell a training image's own caption from another's: "a red circle", "a red shape", "a circle".

        About half are another's, by the colour or by the shape. It is what the Q-Former of BLIP-2 is pretrained on
        beside captions (image-text matching, arXiv 2301.12597). The captions are those of :func:`captions`, so no
        yes/no question is looked at here either.
        """
        draw = random.Random(0)
        right, wrong = MATCHES
        examples = []
        for image, caption in captions(self.train):
            _, colour, shape = caption.split()
            for form, kinds in CAPTION_FORMS.items():
                told, answer = {"colour": colour, "shape": shape}, right
                if draw.random() < 0.5:
                    kind, answer = draw.choice(kinds), wrong
                    told[kind] = draw.choice([one for one in CAPTION_WORDS[kind] if one != told[kind]])
                examples.append(Example(form.format(**told), (image,), ((answer, 1.0),)))
        return examples

    def baselines(self, tasks: dict[str, Any]) -> dict[str, Any]:
        """Scores without a model; ``tasks``: ``{split: Task}`` over the questions of dev and test."""
        scores: dict[str, dict[str, Any]] = {}
        majority = majority_answer(self.train)
        for split, task in tasks.items():
            questions = getattr(self, split)
            answers = {"majority": [majority] * len(questions), "blind": blind_answers(self.train, questions)}
            for name, guesses in answers.items():
                scores.setdefault(name, {})[split] = task.score(guesses)
        return scores


class EasyVQASource(Packaged):
    """easy-VQA, in its package (``petx data get easy-vqa``)."""

    kind, caveats = "easy-vqa", True
    own_tasks = (QUESTIONS.name, *PARTS)

    def check(self, settings: Any) -> None:
        self.check_packaged(settings)
        for i, name in enumerate(settings.tasks):
            if name not in PARTS or name in settings.tasks[:i]:
                wrong = "names twice" if name in PARTS else "has the unknown part"
                raise UserError(f"tasks {wrong} {name!r} of {self.kind}; there are: {', '.join(PARTS)}")
        packages.require("easy-vqa", "efficientnet-lite0")
        packages.check("easy-vqa")
        _, *splits = _easy_vqa_questions(settings)
        check_image_size(settings.image_size)
        count = sum(len(images_of(questions)) for questions in splits)
        wanted, there = count * 3 * settings.image_size**2, memory()  # the pictures are read before they are encoded
        if wanted > there:
            raise UserError(
                f"image_size {settings.image_size}: {count:,} pictures would take {wanted:,} bytes, and this machine "
                f"has {there:,}"
            )

    def examples(self, settings: Any, task: str, split: str) -> tuple[TaskSpec, list[Example]]:
        _, _, dev, test = _easy_vqa_questions(settings)
        return QUESTIONS, examples_of(dev if split == "dev" else test)

    def load(self, settings: Any, host: Any) -> RunData:
        """The whole of VQA as the task to tune on, or the parts of it that ``settings.tasks`` name, each a task; the
        whole is scored either way. For a small host, its lessons to be pretrained on.

        The development split is all questions on ``dev_images`` training images; nothing else is done with those. A
        host that reads pixels gets the image files, any other their features.
        """
        data = read(settings)
        if settings.host is None:
            tokenizer = host.small_tokenizer(data.texts(), settings, visual_tokens=data.features.features.shape[1])
        else:
            tokenizer = host.pretrained_tokenizers(settings)
        processor = getattr(tokenizer, "image_processor", None)
        store: ArrayFeatures | ImageFiles = data.features
        if processor is not None:
            store = ImageFiles(packages.require("easy-vqa")["easy_vqa"] / "data", processor)

        def dataset(spec: TaskSpec, examples: list[Example], split: str) -> Any:
            return host.dataset(spec, examples, store, tokenizer, settings, split)

        def training(spec: TaskSpec, examples: list[Example]) -> Any:
            return dataset(spec, drawn(examples, settings.few_shot, settings.seed, spec.name), "train")

        train = [training(PARTS[name], data.part(name)) for name in settings.tasks]
        train = train or [training(QUESTIONS, data.questions("train"))]
        vqa = {split: dataset(QUESTIONS, data.questions(split), split) for split in ("dev", "test")}
        run_data = RunData(tokenizer, train=train, dev=[vqa["dev"]], test=[vqa["test"]])
        run_data.baselines = data.baselines(vqa)
        if settings.host is None:
            read_by = {"caption": data.captions, "what": lambda: data.questions("train", only_what=True)}
            read_by |= {"words": data.words, "match": data.matches}
            lessons = host.lessons_of(settings)
            run_data.pretraining = [dataset(LESSONS[one], read_by[one](), "pretraining") for one in lessons]
            run_data.feature_stats = feature_stats(data.features, images_of(data.train))
        return run_data


def read(settings: Any) -> EasyVQA:
    """:class:`EasyVQA` with the images' features, computed or read from the cache."""
    folder, train, dev, test = _easy_vqa_questions(settings)
    images = images_of([*train, *dev, *test])
    arrays = image_features([folder / "data" / image for image in images], settings.image_size)
    return EasyVQA(ArrayFeatures(arrays, images, grid_boxes(settings.image_size // STRIDE)), train, dev, test)


def _easy_vqa_questions(settings: Any) -> tuple[Path, list[Question], list[Question], list[Question]]:
    """The package's folder and the questions of train, dev and test, of as many images as ``settings`` want."""
    folder = packages.require("easy-vqa")["easy_vqa"]
    train, test = read_questions(folder, "train"), read_questions(folder, "test")
    train, dev = split_by_image(train, _at_most("dev_images", settings.dev_images, train, left_over=1))
    if settings.train_images is not None:
        train = keep_images(train, _at_most("train_images", settings.train_images, train))
    if settings.test_images is not None:
        test = keep_images(test, _at_most("test_images", settings.test_images, test))
    return folder, train, dev, test


def _at_most(name: str, count: int, questions: list[Question], left_over: int = 0) -> int:
    """``count``, if that many of the images of ``questions`` can be taken and ``left_over`` stay."""
    most = len(images_of(questions)) - left_over
    if not 1 <= count <= most:
        raise UserError(f"{name} must be between 1 and {most}, got {count}")
    return count


SOURCE = EasyVQASource()
