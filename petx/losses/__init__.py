"""Losses of PETAL (arXiv 2312.12458), to be added to the language model's own loss."""

from petx.losses.information_bottleneck import InformationBottleneck
from petx.losses.labels import LabelBag, label_bag
from petx.losses.mutual_information import CLUB, MINE, InfoNCE

__all__ = ["CLUB", "InfoNCE", "InformationBottleneck", "LabelBag", "MINE", "label_bag"]
