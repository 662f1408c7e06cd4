"""PETAL's recipe: what it gives to the machinery of :mod:`petx.train`."""

import functools

import torch

from petx.train.petal import arguments, arms, data, host
from petx.train.recipe import Recipe

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
- PETAL's rank and learning rate were chosen on a development split cut out of the training images, the other rows'
  learning rates are those of VL-PET's main job; the test images were scored once a row. {seeds}
"""


_HOSTS = {
    "small": """\
- The host is a small InstructBLIP: EfficientNet-Lite0's features, a Q-Former and a tiny language model, pretrained
  minutes ago on captions, "what" questions and repeating words. It had seen no yes/no question. So small a host makes
  the trained share large; of the full-size InstructBLIPs PETAL trains far less (petx params petal).""",
    "smollm2": """\
- The language model is SmolLM2-135M with its own weights. The Q-Former between it and EfficientNet-Lite0's features was
  pretrained here on captions, "what" questions and repeating words, and had seen no yes/no question.""",
    "own": "- The host is the InstructBLIP that was given; what it had seen before is not known here.",
}


class Petal(Recipe):
    settings, main_arm = arguments.Settings, "petal"
    pretraining = "captions, 'what' questions and repeating words"
    titles = {
        "frozen": "frozen host",
        "petal": "PETAL",
        "lora": "LoRA (rank {rank_used})",
        "adapter": "adapter (bottleneck {rank_used})",
        "head": "head",
        "full": "full tuning of the Q-Former",
        "no-experts": "PETAL without experts",
        "no-gate": "PETAL, experts without gate",
        "no-ib": "PETAL without information bottleneck",
        "no-threshold": "PETAL without threshold",
        "diagonal-core": "PETAL, diagonal core",
        "full-core": "PETAL, full core",
        "everything": "full tuning, language model too",
        "scratch": "full training from scratch",
        "random-host": "PETAL, random frozen host",
    }
    colours = {
        "petal": "#D55E00",
        "lora": "#0072B2",
        "adapter": "#56B4E9",
        "head": "#999999",
        "full": "#009E73",
        "no-experts": "#F0E442",
        "no-gate": "#8B4513",
        "no-ib": "#7570B3",
        "no-threshold": "#66A61E",
        "diagonal-core": "#E7298A",
        "full-core": "#E7298A",
        "everything": "#000000",
        "scratch": "#CC79A7",
        "random-host": "#E69F00",
    }

    def check_available(self, settings):
        data.check_available(settings)

    def load_data(self, settings):
        return data.load(settings)

    def question_item(self, loaded, image, question):
        return data.question_item(loaded, image, question)

    def host_in_place(self, settings):
        return settings.host

    def small_host(self, settings, run_data):
        return host.small(settings, run_data)

    def prepare_pretraining(self, model, settings):
        if settings.language_model == "smollm2":
            model.language_model.requires_grad_(False)

    def load_host(self, folder, settings):
        return host.load(folder, settings)

    def load_tokenizer(self, folder):
        return host.load_tokenizers(folder)

    def build(self, arm, model, settings):
        return arms.build(arm, model, settings)

    def counts(self, model):
        counted = arms.counts(model)
        config = getattr(model, "peft_config", {}).get("default")
        adapters = [module for module in model.modules() if isinstance(module, arms.Adapter)]
        if config is not None and config.peft_type == "LORA":
            counted["rank_used"] = config.r
        elif adapters:
            counted["rank_used"] = adapters[0].down.out_features
        return counted

    def notes(self, settings):
        kind = "own" if settings.host else "smollm2" if settings.language_model == "smollm2" else "small"
        return _NOTES.replace("HOST", _HOSTS[kind])

    def learning_rate(self, arm, settings):
        kind = {"everything": "full", "scratch": "full"}.get(arm, arm)
        return getattr(settings, f"lr_{kind}", settings.lr)

    def trainer(self, settings):
        from petx.train.petal.trainer import PetalTrainer

        return functools.partial(PetalTrainer, settings=settings)

    def training_options(self, settings):
        return {settings.amp: True} if settings.amp and torch.cuda.is_available() else {}


RECIPE = Petal()
