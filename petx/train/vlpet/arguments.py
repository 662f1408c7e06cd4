"""Settings of ``petx train vlpet``."""

import dataclasses
import functools
from typing import ClassVar

from petx import tasks
from petx.errors import UserError
from petx.options import option
from petx.train import settings
from petx.train.settings import Common, with_baselines

LEVELS = ("large", "middleX", "middleY", "small")


@with_baselines
@dataclasses.dataclass
class Settings(Common):
    """Everything one run of VL-PET's recipe depends on."""

    recipe: ClassVar[str] = "vlpet"
    positive: ClassVar[tuple] = ("rank", "heads", *Common.positive)

    # data
    data: str = option("easy-vqa", "data set", choices=tasks.kinds("vlpet"))
    features_dir: str | None = option(None, "folder of the feature files (default: in DATA_DIR)")
    visual_tokens: int = option(4, "visual tokens an image or video; longer features are max-pooled to this many")

    # host
    host: str | None = option(None, "pretrained BART or T5, folder or hub name (default: a small BART pretrained here)")
    width: int = option(128, "small host: width of the model")
    layers: int = option(2, "small host: encoder layers, and decoder layers")
    attention_heads: int = option(4, "small host: attention heads")
    ffn: int = option(512, "small host: width of the feed-forward layers")
    init_std: float = option(0.09, "small host: standard deviation of the initial weights")

    # tuning
    level: str = option("large", "granularity of VL-PET's gate", choices=LEVELS)
    rank: int = option(24, "bottleneck of VL-PET's encoder adapters")
    gate_rank: int = option(24, "bottleneck of the gate at level large")
    decoder_rank: int = option(24, "bottleneck of VL-PET's decoder value adapters")
    heads: int = option(4, "heads of VL-PET's multi-head modification")
    scale: float = option(1.0, "VL-PET's scaling factor s")
    zero_init: bool = option(False, "start VL-PET's up projections and gates at zero, as on T5")
    arms: list = option(
        ["frozen", "projector", "vlpet", "lora", "full"], "methods and baselines to compare; --list shows them"
    )
    with_arms: list = option([], "further arms on request: scratch, random-host", flag="with")
    lr: float = option(3e-3, "peak learning rate of VL-PET")
    warmup: float = option(
        0.1, "linear warm-up: share of the steps, or their number from 1 on; linear decay to 0 after"
    )
    decay: str = option(
        "clean",
        "weight decay exempts norms and biases (clean), or what the released code exempts (paper)",
        choices=("clean", "paper"),
    )

    def check(self) -> None:
        super().check()
        if self.rank % self.heads:
            raise UserError(f"heads must divide rank, got heads={self.heads}, rank={self.rank}")


parse = functools.partial(settings.parse, Settings)
checked = functools.partial(settings.checked, Settings)
read_preset = functools.partial(settings.read_preset, Settings)
