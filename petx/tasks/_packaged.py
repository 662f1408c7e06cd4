"""What sources of pictures in packages share: settings they leave unread, EfficientNet-Lite0's features, lessons."""

import random
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.features import STRIDE, WIDTH, ImageEncoder, grid_boxes, read_image
from petx.data.stores import ArrayFeatures
from petx.data.tokenizers import words
from petx.errors import UserError
from petx.tasks.base import Source


class Packaged(Source):
    """Pictures in a package, which hosts that read features get by EfficientNet-Lite0."""

    encodes_images = True
    settings = ("image_size", "train_images", "dev_images", "test_images")

    def check_packaged(self, settings: Any, *more: str) -> None:
        """Raise :class:`UserError` if ``settings`` have what data in packages leave unread, or ``more``."""
        for given in settings.differing((*settings.of_own_data, *more)):
            raise UserError(
                f"{given.partition('=')[0]} is for data of one's own, and data is {self.kind}; choose one with --data"
            )
        if settings.host is None and settings.differing(["dtype"]):
            raise UserError(f"dtype is that of a given host, and the small one is float32; got {settings.dtype}")

    def check_host(self, settings: Any, host: Any) -> None:
        if "feature_width" in host.reads(settings) and settings.feature_width != WIDTH:
            raise UserError(
                f"feature_width is {WIDTH} for data in packages, whose features EfficientNet-Lite0 makes; got "
                f"{settings.feature_width}"
            )

    def encode(self, image: str | Path, settings: Any) -> tuple[Any, Any]:
        features = ImageEncoder()(read_image(image, settings.image_size).unsqueeze(0))
        return features, grid_boxes(settings.image_size // STRIDE).unsqueeze(0)


def check_image_size(size: int) -> None:
    if size < STRIDE or size % STRIDE:
        raise UserError(f"image_size must be a positive multiple of {STRIDE}, got {size}")


def repeated_words(images: list[str], texts: list[str]) -> list[Example]:
    """An example for each of ``images`` that repeats one to three words of ``texts``; the image does not matter.

    They give a language model an output for every word, those of tasks to come too, as any pretrained one has.
    """
    draw = random.Random(0)
    known = sorted({word for text in texts for word in words(text)})
    said = [(image, " ".join(draw.choices(known, k=draw.randint(1, 3)))) for image in images]
    return [Example(text, (image,), ((text, 1.0),)) for image, text in said]


def feature_stats(store: ArrayFeatures, images: list[str]) -> tuple[Any, Any]:
    """Mean and standard deviation ``[F]`` of the features of ``images``, by channel."""
    found = store.features[[store.rows[image] for image in images]].flatten(0, 1)
    return found.mean(0), found.std(0)
