"""VL-PET's trainable parameters on BART-base and T5-base.

The total is the frozen model, its visual embedding and the new modules; the percentage is trainable over total, as in
the paper's tables.

  petx params vlpet --backbone bart-base --granularity large
  petx params vlpet --all
"""

import argparse
from itertools import product
from typing import Any

from petx.errors import UserError

GRANULARITIES = ("small", "middleX", "middleY", "large")
PAPER_SETTINGS = [("bart-base", "image"), ("t5-base", "image"), ("bart-base", "video")]
DEFAULTS = {"backbone": "bart-base", "features": "image", "granularity": "large"}
COLUMNS = {name: name for name in DEFAULTS} | {
    "encoder_delta": "enc ΔH",
    "encoder_gate": "enc gate",
    "decoder_value": "dec value",
    "norms": "enc norms",
    "visual": "visual",
    "trainable": "trainable",
    "total": "total",
    "percent": "percent",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="every granularity on every backbone of the paper")
    parser.add_argument("--backbone", help="bart-base (default) or t5-base")
    parser.add_argument("--features", help="visual features: image (default) or video")
    parser.add_argument("--granularity", help="large (default), middleX, middleY, small or none")
    parser.add_argument("--design", default="down", help="down (default), up, down-up or down-up-pair")
    parser.add_argument("--modification", default="linear", help="linear (default) or phm (Compacter's weights)")
    for name, what in (("rank", "r"), ("heads", "N_h"), ("gate-rank", "r_g"), ("decoder-rank", "the decoder's r")):
        parser.add_argument(f"--{name}", type=int, help=f"{what}; default: the paper's for the backbone")


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    given = [name for name in DEFAULTS if getattr(args, name) is not None]
    if args.all and given:
        raise UserError(f"--all counts every {', '.join(DEFAULTS)}; leave --{given[0]} out")
    if args.all:
        settings = [(*setting, granularity) for setting, granularity in product(PAPER_SETTINGS, GRANULARITIES)]
    else:
        backbone, features, granularity = (getattr(args, name) or default for name, default in DEFAULTS.items())
        settings = [(backbone, features, granularity)]
    names = ("design", "modification", "rank", "heads", "gate_rank", "decoder_rank")
    return [count(*setting, **{name: getattr(args, name) for name in names}) for setting in settings]


def count(backbone: str, features: str, granularity: str, **options: Any) -> dict[str, Any]:
    """The setting and its :func:`petx.tuners.parameter_counts`; ``options`` as in :class:`petx.tuners.VLPetConfig`."""
    from peft import get_peft_model  # here, so that `petx --help` and a mistyped option stay quick

    from petx.models import build_skeleton
    from petx.tuners import VLPetConfig, parameter_counts

    config = VLPetConfig(granularity=granularity, **options)
    model = get_peft_model(build_skeleton(backbone, features), config)
    return {"backbone": backbone, "features": features, "granularity": granularity, **parameter_counts(model)}
