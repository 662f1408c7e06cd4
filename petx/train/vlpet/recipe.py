"""VL-PET's recipe: what it gives to the machinery of :mod:`petx.train`."""

from petx.train.recipe import Recipe
from petx.train.vlpet import arguments, arms, data, host

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
  scored once a row. {seeds}
"""


class VLPet(Recipe):
    settings, main_arm = arguments.Settings, "vlpet"
    titles = {
        "frozen": "frozen host",
        "projector": "visual projector alone",
        "vlpet": "VL-PET-{level}",
        "lora": "LoRA (rank {lora_rank})",
        "full": "full tuning",
        "scratch": "full training from scratch",
        "random-host": "VL-PET-{level}, random frozen host",
    }
    colours = {  # Okabe and Ito's palette, told apart by colour-blind readers
        "projector": "#999999",
        "vlpet": "#D55E00",
        "lora": "#0072B2",
        "full": "#009E73",
        "scratch": "#CC79A7",
        "random-host": "#E69F00",
    }
    columns = (("of that projector", "projector"),)

    def check_available(self, settings):
        data.check_available(settings)

    def load_data(self, settings):
        return data.load(settings)

    def question_item(self, loaded, image, question):
        return data.question_item(loaded, image, question)

    def small_host(self, settings, run_data):
        return host.small_bart(settings, run_data.tokenizer)

    def pretrained_host(self, settings, run_data):
        return host.pretrained(settings, run_data.tokenizer)

    def load_host(self, folder, settings):
        return host.load(folder)

    def build(self, arm, model, settings):
        return arms.build(arm, model, settings)

    def counts(self, model):
        counted = arms.counts(model)
        config = getattr(model, "peft_config", {}).get("default")
        if config is not None and config.peft_type == "LORA":
            counted["lora_rank"] = config.r
        return counted

    def notes(self, settings):
        return _NOTES

    def learning_rate(self, arm, settings):
        return arms.learning_rate(arm, settings)


RECIPE = VLPet()
