"""OpenMoji: its pictures and their names ranked for one another, the second job of both recipes.

Read from its packages and cut by picture into train, dev and test; a small host is pretrained on the names of the
training pictures as captions, and tuned on retrieval.
"""

import random
from typing import Any

from petx.data import openmoji, packages
from petx.data.examples import Example, drawn
from petx.data.features import STRIDE, grid_boxes, image_features
from petx.data.openmoji import Emoji
from petx.data.stores import ArrayFeatures
from petx.errors import UserError
from petx.tasks import _captions
from petx.tasks._packaged import Packaged, check_image_size, feature_stats, repeated_words
from petx.tasks._retrieval import SHARED
from petx.tasks.base import RunData, TaskSpec

MAX_NAME = 16  # tokens of a name, its end included
TEST_IMAGES = 600  # unless settings say how many
RETRIEVAL = TaskSpec("openmoji_retrieval", **SHARED | dict(max_text=24))
LESSONS = {
    "caption": TaskSpec("caption", prompt="caption: ", templates=("describe the image",), max_target=MAX_NAME),
    "words": TaskSpec("words", templates=("say {q}",), max_target=MAX_NAME),
}


def split(emoji: list[Emoji], dev: int, test: int, train: int | None) -> dict[str, list[Emoji]]:
    """``{"train", "dev", "test"}``: so many pictures each, chosen alike for any ``train``; None is all the rest."""
    order = sorted(emoji, key=lambda one: one.code)
    random.Random(0).shuffle(order)
    rest = order[dev + test :]
    return {"dev": order[:dev], "test": order[dev : dev + test], "train": rest[:train]}


def examples_of(emoji: list[Emoji], training: bool) -> list[Example]:
    """A pair for every name to train on; to rank, an example for every picture."""
    return list(_captions.examples(((one.code, one.code, one.names) for one in emoji), training))


class OpenMojiSource(Packaged):
    """OpenMoji's pictures and their names, in packages (``petx data get openmoji``)."""

    kind = "openmoji"
    own_tasks = retrieval = (RETRIEVAL.name,)
    pretraining = "names of the training pictures"

    def check(self, settings: Any) -> None:
        self.check_packaged(settings, "tasks", "host")
        packages.require("openmoji", "efficientnet-lite0")
        check_image_size(settings.image_size)
        openmoji.check_drawing(settings.image_size)
        _parts(settings)

    def examples(self, settings: Any, task: str, split: str) -> tuple[TaskSpec, list[Example]]:
        return RETRIEVAL, examples_of(_parts(settings)[split], training=False)

    def load(self, settings: Any, host: Any) -> RunData:
        parts = _parts(settings)
        codes = [one.code for part in parts.values() for one in part]
        arrays = image_features(openmoji.draw(codes, settings.image_size), settings.image_size)
        store = ArrayFeatures(arrays, codes, grid_boxes(settings.image_size // STRIDE))
        names = [name for one in parts["train"] for name in one.names]
        said = [*names, RETRIEVAL.prompt, "true false"]
        tokenizer = host.small_tokenizer(said, settings, visual_tokens=arrays.shape[1])

        def dataset(spec: TaskSpec, examples: list[Example], split: str) -> Any:
            return host.dataset(spec, examples, store, tokenizer, settings, split)

        examples = {name: examples_of(part, name == "train") for name, part in parts.items()}
        examples["train"] = drawn(examples["train"], settings.few_shot, settings.seed, RETRIEVAL.name)
        tasks = {name: dataset(RETRIEVAL, found, name) for name, found in examples.items()}
        run_data = RunData(tokenizer, train=[tasks["train"]], dev=[tasks["dev"]], test=[tasks["test"]])
        shown = [one.code for one in parts["train"]]
        lessons = {"caption": examples_of(parts["train"], training=True), "words": repeated_words(shown, names)}
        run_data.pretraining = [dataset(LESSONS[n], lessons[n], "pretraining") for n in host.lessons if n in lessons]
        run_data.feature_stats = feature_stats(store, shown)
        return run_data


def _parts(settings: Any) -> dict[str, list[Emoji]]:
    """The pictures of train, dev and test, as many as ``settings`` want."""
    emoji, dev, test = openmoji.read_emoji(), settings.dev_images, settings.test_images or TEST_IMAGES
    for name, count, most in (
        ("dev_images", dev, len(emoji) - 2),
        ("test_images", test, len(emoji) - dev - 1),
        ("train_images", settings.train_images or 1, len(emoji) - dev - test),
    ):
        if not 1 <= count <= most:
            raise UserError(f"{name} must be between 1 and {most}, got {count}")
    return split(emoji, dev, test, settings.train_images)


SOURCE = OpenMojiSource()
