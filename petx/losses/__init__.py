"""Losses: PETAL's (arXiv 2312.12458), to be added to the language model's own, and those of image-text retrieval."""

from petx.losses.information_bottleneck import InformationBottleneck
from petx.losses.labels import LabelBag, label_bag
from petx.losses.mutual_information import CLUB, MINE, InfoNCE
from petx.losses.retrieval import contrastive_loss, hard_negatives
from petx.models.instructions import aggregate_instructions  # noqa: F401  (where it was first; not of this package)

__all__ = [
    "CLUB",
    "InfoNCE",
    "InformationBottleneck",
    "LabelBag",
    "MINE",
    "contrastive_loss",
    "hard_negatives",
    "label_bag",
]
