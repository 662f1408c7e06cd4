"""Settings of ``petx train vlpet``."""

import dataclasses
import functools
from typing import ClassVar

from petx import tasks
from petx.baselines.vlpet import DECODER_PLACES, ENCODER_PLACES
from petx.errors import UserError
from petx.nn.gated_adapter import DESIGNS
from petx.options import option
from petx.train import settings
from petx.train.settings import Common, with_baselines

LEVELS = ("large", "middleX", "middleY", "small", "none")


@with_baselines
@dataclasses.dataclass
class Settings(Common):
    """Everything one run of VL-PET's recipe depends on."""

    recipe: ClassVar[str] = "vlpet"
    of_own_data: ClassVar[tuple] = (*Common.of_own_data, "features_dir")

    # data
    data: str = option("easy-vqa", "data set", choices=tasks.kinds("vlpet"))
    features_dir: str | None = option(
        None,
        "folder of the feature files, or of the image files for a host that reads them (default: in DATA_DIR)",
        path=True,
    )
    visual_tokens: int = option(
        4, "visual tokens per image or video; longer features are max-pooled to this many", least=1, most=65536
    )

    task_prompts: bool = option(True, "the task's name in front of every text; the released full tuning runs without")

    # host
    host: str | None = option(
        None,
        "pretrained BART, T5, Florence-2 or another image-text-to-text model with its processor, folder or hub name "
        "(default: a small BART pretrained here)",
        path=True,
    )
    width: int = option(128, "small host: width of the model", least=1)
    layers: int = option(2, "small host: encoder layers, and decoder layers", least=1, most=1024)
    attention_heads: int = option(4, "small host: attention heads", least=1)
    ffn: int = option(512, "small host: width of the feed-forward layers", least=1)
    init_std: float = option(0.09, "small host: standard deviation of the initial weights", above=0)

    # tuning
    level: str = option("large", "granularity of VL-PET's gate; none: no gate", choices=LEVELS)
    design: str = option("down", "which projections of VL-PET's modification are multi-head", choices=DESIGNS)
    rank: int = option(24, "bottleneck of VL-PET's encoder adapters", least=1)
    gate_rank: int = option(24, "bottleneck of the gate at level large", least=1)
    decoder_rank: int = option(24, "bottleneck of VL-PET's decoder value adapters", least=1)
    heads: int = option(4, "heads of VL-PET's multi-head modification", least=1)
    scale: float | None = option(
        None, "VL-PET's scaling factor s (default: 1, or in a decoder-only language model that of the frozen model)"
    )
    zero_init: bool = option(False, "start VL-PET's up projections and gates at zero, as on T5")
    encoder_places: list = option(
        list(ENCODER_PLACES),
        f"sub-layers of the encoder that are adapted, of {', '.join(ENCODER_PLACES)}; []: none",
        each=dict(kind=str),
    )
    decoder_places: list = option(
        ["value"],
        f"projections of the decoder's cross-attention, of {', '.join(DECODER_PLACES)}; []: none",
        each=dict(kind=str),
    )
    decoder_level: str = option("none", "gate of the decoder's adapters", choices=LEVELS)
    placement: str = option(
        "sequential",
        "the modification reads the sub-layer's output (sequential) or input (parallel)",
        choices=("sequential", "parallel"),
    )
    gate_input: str = option(
        "modified",
        "levels middleX and small read H + ΔH (modified, released code) or H (original, paper)",
        choices=("modified", "original"),
    )
    middle_y: str = option(
        "linear",
        "level middleY is 1 + z (linear, released code) or 1 + sigmoid(z) (paper)",
        choices=("linear", "sigmoid"),
    )
    mask_padding: bool = option(False, "level small leaves padding out of its mean")
    activation: str = option(
        "gelu_tanh", "activation of VL-PET's modules: by tanh, as released, or exact", choices=("gelu_tanh", "gelu")
    )
    use_bias: bool = option(True, "biases in VL-PET's projections")
    train_encoder_norms: bool = option(True, "VL-PET trains the encoder's norms")
    train_decoder_norms: bool = option(False, "VL-PET trains the decoder's norms")
    arms: list = option(
        ["frozen", "projector", "vlpet", "lora", "full"],
        "methods and baselines to compare; --list shows them",
        each=dict(kind=str),
    )
    with_arms: list = option(
        [], "further arms, such as bitfit or scratch; --list shows them", flag="with", each=dict(kind=str)
    )
    lr: float = option(3e-3, "peak learning rate of VL-PET", above=0)
    warmup: float = option(
        0.1, "linear warm-up: share of the steps, or their number from 1 on; linear decay to 0 after", least=0
    )
    adamw: str = option(
        "torch",
        "AdamW of torch, or of the released code (transformers 4.2.1), whose epsilon comes before the bias correction",
        choices=("torch", "released"),
    )
    decay: str = option(
        "clean",
        "weight decay exempts norms and biases (clean), or what the released code exempts (paper)",
        choices=("clean", "paper"),
    )

    def check(self) -> None:
        super().check()
        if self.adamw != "torch" and "optim" in self.trainer:
            raise UserError(f"adamw={self.adamw} and trainer.optim say the same thing; give adamw=torch beside it")
        if "down" in self.design and self.rank % self.heads:
            raise UserError(f"heads must divide rank, got heads={self.heads}, rank={self.rank}")
        for name, known in (("encoder_places", ENCODER_PLACES), ("decoder_places", DECODER_PLACES)):
            for place in getattr(self, name):
                if place not in known:
                    raise UserError(f"{name} must be of {', '.join(known)}; got {place!r}")
        if not self.encoder_places and not self.decoder_places:
            raise UserError("encoder_places and decoder_places are both empty: VL-PET would adapt nothing")
        if self.decoder_level != "none" and not self.decoder_places:
            raise UserError(f"decoder_level={self.decoder_level} needs decoder_places, which is empty")
        levels = {self.level, self.decoder_level}
        for name, default, readers in (
            ("gate_input", "modified", ("middleX", "small")),
            ("middle_y", "linear", ("middleY",)),
            ("mask_padding", False, ("small",)),
        ):
            if getattr(self, name) != default and levels.isdisjoint(readers):
                wanted = " and ".join(readers)
                raise UserError(f"{name}={getattr(self, name)} is for level {wanted}, got level={self.level}")
        if self.width % self.attention_heads:
            raise UserError(f"attention_heads must divide width, got {self.attention_heads} and {self.width}")


parse = functools.partial(settings.parse, Settings)
checked = functools.partial(settings.checked, Settings)
read_preset = functools.partial(settings.read_preset, Settings)
