"""easy-VQA: questions on images of one coloured shape, read from its package; splits, captions and blind baselines."""

import dataclasses
import json
import random
import re
from collections import Counter, defaultdict

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")


@dataclasses.dataclass(frozen=True)
class Question:
    text: str
    answer: str
    image: str  # path of its file, relative to the package's data folder

    @property
    def kind(self):
        """``colour``, ``shape`` or ``yes/no``, by the answer."""
        return "colour" if self.answer in COLOURS else "shape" if self.answer in SHAPES else "yes/no"


def read_questions(folder, split):
    """The questions of ``split`` (``train`` or ``test``) from the package folder ``folder``."""
    rows = json.loads((folder / "data" / split / "questions.json").read_text(encoding="utf-8"))
    return [Question(text, answer, f"{split}/images/{image}.png") for text, answer, image in rows]


def images_of(questions):
    """The images of ``questions``, each once, in a fixed order."""
    return sorted({question.image for question in questions})


def keep_images(questions, count, seed=0):
    """The questions on ``count`` images chosen by ``seed``."""
    chosen = set(random.Random(seed).sample(images_of(questions), count))
    return [question for question in questions if question.image in chosen]


def split_by_image(questions, count, seed=0):
    """``(rest, held_out)``: all questions on ``count`` images, chosen by ``seed``, are held out."""
    held_out = keep_images(questions, count, seed)
    images = {question.image for question in held_out}
    return [question for question in questions if question.image not in images], held_out


def captions(questions):
    """``(image, "a red circle")`` for every image whose "what" questions tell both its colour and its shape.

    Yes/no questions are not looked at: they are the new task.
    """
    told = defaultdict(set)
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


def majority_answer(questions):
    return Counter(question.answer for question in questions).most_common(1)[0][0]


def blind_answers(train, questions):
    """The most frequent training answer to each question's exact text: the best anyone does without the image."""
    counts = defaultdict(Counter)
    for question in train:
        counts[question.text][question.answer] += 1
    fallback = majority_answer(train)
    best = {text: counter.most_common(1)[0][0] for text, counter in counts.items()}
    return [best.get(question.text, fallback) for question in questions]
