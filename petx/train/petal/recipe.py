"""PETAL's recipe: what it gives to the machinery of :mod:`petx.train`."""

from typing import Any

from torch import nn

from petx.hosts.instruct_blip import InstructBlipHost
from petx.tasks.easy_vqa import lesson_words
from petx.train.petal import arguments
from petx.train.petal.trainer import PetalTrainer
from petx.train.recipe import Recipe
from petx.train.settings import Common

_NOTES = """\
Scores are per cent of the test questions answered exactly; "dev" is that on the development split.

What these numbers show, and what they do not:
- Read every score beside the best answer without the image, {blind} here: the wording gives most yes/no answers
  away, so only what lies above that was read off the picture.
- Only the images are new. Training and test ask the same 107 questions, and an image holds one coloured shape.
HOST
- The language model stays frozen in every row but those called everything and scratch, so the Q-Former alone has to
  bring it to new answers.
- Full tuning is what the paper calls so: Q-Former, query tokens and projection. LoRA and adapter are as large as PETAL,
  the head (the first linear of the last query FFN) is as large as it is.
- Host, steps, PETAL's rank, core and learning rate were chosen on a development split cut out of the training images,
  the other rows' learning rates are those of VL-PET's main job; the test images were scored once per row. {seeds}
"""


_HOSTS = {
    "small": """\
- The host is a small InstructBLIP: EfficientNet-Lite0's features, a Q-Former and a tiny language model, pretrained
  minutes ago on LESSONS. It had seen no yes/no question.MATCH
  So small a host makes the trained share large; of the full-size InstructBLIPs PETAL trains far less (petx params
  petal).""",
    "smollm2": """\
- The language model is SmolLM2-135M with its own weights. The Q-Former between it and EfficientNet-Lite0's features was
  pretrained here on LESSONS, and had seen no yes/no question.MATCH""",
    "own": "- The host is the InstructBLIP that was given; what it had seen before is not known here.",
}

_MATCH = """
  Matching captions has the answers yes and no: it had learnt whether "a red circle" fits an image, not what a question
  asks, nor what "not" and "no" do to the answer."""


class Petal(Recipe):
    name, settings, small_host = "petal", arguments.Settings, "instruct_blip"

    def trainer(
        self,
        model: nn.Module,
        args: Any,
        tokenizer: Any,
        tasks: list,
        batch_sizes: list[int],
        settings: Common,
        dev_tasks: list | tuple = (),
    ) -> PetalTrainer:
        more: dict[str, Any] = dict(dev_tasks=dev_tasks, decay=settings.decay, drop_last=settings.drop_last)
        more |= dict(settings=settings)
        return PetalTrainer(model, args, tokenizer, tasks, batch_sizes, **more)

    def notes(self, settings: Common) -> str:
        given: Any = settings  # of this recipe
        kind = "own" if given.host else "smollm2" if given.language_model == "smollm2" else "small"
        lessons = InstructBlipHost.lessons_of(settings)
        seen = _HOSTS[kind].replace("MATCH", _MATCH if "match" in lessons else "")
        return _NOTES.replace("HOST", seen.replace("LESSONS", lesson_words(lessons)))


RECIPE = Petal()
