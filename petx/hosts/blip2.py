"""BLIP-2: a Q-Former that reads the image alone, in front of a language model."""

from transformers import Blip2ForConditionalGeneration

from petx.hosts._instructed import WithQFormer


class Blip2(WithQFormer):
    """BLIP-2, a published checkpoint; its Q-Former reads no instruction."""

    model_types = ("blip-2",)
    words, order = "BLIP-2", 1
    model_class = Blip2ForConditionalGeneration


HOST = Blip2
