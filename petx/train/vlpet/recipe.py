"""VL-PET's recipe: what it gives to the machinery of :mod:`petx.train`."""

from typing import Any

from torch import nn
from transformers import AutoConfig

from petx.baselines.vlpet import check_sizes
from petx.hosts import Host
from petx.train.recipe import Recipe
from petx.train.settings import Common
from petx.train.vlpet import arguments
from petx.train.vlpet.trainer import VLPetTrainer

_NOTES = """\
Scores are per cent of the test questions answered exactly; "dev" is that on the development split.

What these numbers show, and what they do not:
- Read every score beside the best answer without the image, {blind} here: the wording gives most yes/no answers
  away, so only what lies above that was read off the picture.
- Only the images are new. Training and test ask the same 107 questions, and an image holds one coloured shape.
- The set is easy. A model trained from scratch does as well as full tuning, and VL-PET on a frozen host of random
  weights as well as on the pretrained one (--with scratch,random-host). So this run shows how near VL-PET comes to
  full tuning while the host stays as it is, and not that the pretraining is needed or that tuning less is better.
- The host is a small BART, pretrained minutes ago on captions and "what" questions of the training images, not
  BART-base. It had seen no yes/no question, nor the words only those use: their vectors are random, and stay so where
  the host is frozen.
- The visual projector is a large part of so small a model and is trained in every tuned row, so compare the adapters
  by what they train beside it. On BART-base it is 1.1 % of all parameters.
- Steps and learning rates were chosen on a development split cut out of the training images; the test images were
  scored once per row. {seeds}
"""


class VLPet(Recipe):
    name, settings, small_host = "vlpet", arguments.Settings, "vl_bart"
    columns = (("of that projector", "projector"),)

    def prepared_host(self, settings: Common) -> type[Host]:
        host = super().prepared_host(settings)
        given: Any = settings  # of this recipe
        width, preset = given.width, "auto"
        if given.host is not None:
            config = AutoConfig.from_pretrained(given.host)
            width, preset = config.get_text_config().hidden_size, host.vlpet_preset(config)
        check_sizes(given, width, preset)
        return host

    def trainer(
        self,
        model: nn.Module,
        args: Any,
        tokenizer: Any,
        tasks: list,
        batch_sizes: list[int],
        settings: Common,
        dev_tasks: list | tuple = (),
    ) -> VLPetTrainer:
        given: Any = settings  # of this recipe
        more: dict[str, Any] = dict(decay=given.decay, adamw=given.adamw, drop_last=given.drop_last)
        return VLPetTrainer(model, args, tokenizer, tasks, batch_sizes, dev_tasks=dev_tasks, **more)

    def notes(self, settings: Common) -> str:
        return _NOTES


RECIPE = VLPet()
