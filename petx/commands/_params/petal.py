"""PETAL's trainable parameters on InstructBLIP with Flan-T5-XL, Flan-T5-XXL or Vicuna-7B.

Three shares are given: of the whole model, of what InstructBLIP itself trains (the Q-Former, its queries, the language
projection and the image encoder's last norm), and of the Q-Former.

  petx params petal --language-model vicuna-7b --core diagonal
  petx params petal --all
"""

import argparse
from typing import Any

from petx.errors import UserError

LANGUAGE_MODELS = ("flan-t5-xl", "flan-t5-xxl", "vicuna-7b")
# The released code registers scale and shift for cross-attention outputs and never uses them.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "released code's tensors": {"cross_query_transform": True},
    "diagonal core": {"cross_query_transform": True, "core": "diagonal"},
    "no experts": {"cross_query_transform": True, "experts": 0},
    "diagonal core, 4 experts": {"cross_query_transform": True, "core": "diagonal", "experts": 4},
    "rank 128": {"cross_query_transform": True, "rank": 128},
}
COLUMNS = {
    "language_model": "language model",
    "setting": "setting",
    "text": "U, V, C",
    "image": "U_I, V_I, C_I",
    "modes": "modes",
    "query_transform": "scale, shift",
    "experts": "experts",
    "trainable": "trainable",
    "total": "total",
    "percent": "percent",
    "trained_percent": "of trained",
    "qformer_percent": "of Q-Former",
}
OPTIONS = ("rank", "image_rank", "core", "experts", "expert_rank", "expert_gate", "threshold", "share_image_core")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="every language model, and variations on the first")
    parser.add_argument("--language-model", help="flan-t5-xl (default), flan-t5-xxl or vicuna-7b")
    parser.add_argument("--rank", type=int, help="R; default 64")
    parser.add_argument("--image-rank", type=int, help="R of the factors that read the image; default: the rank")
    parser.add_argument("--core", help="full (default) or diagonal")
    parser.add_argument("--experts", type=int, help="K; default 6, 0 for none")
    parser.add_argument("--expert-rank", type=int, help="bottleneck of an expert; default 64")
    parser.add_argument("--expert-gate", help="uniform (default), token or sample")
    parser.add_argument("--threshold", help="none (default), soft, hard or sigmoid")
    parser.add_argument("--share-image-core", action="store_true", default=None, help="one core for text and image")
    parser.add_argument(
        "--cross-query-transform", action="store_true", default=None, help="the released code's tensors"
    )


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    options = (*OPTIONS, "cross_query_transform")
    given = [name for name in ("language_model", *options) if getattr(args, name) is not None]
    if args.all and given:
        raise UserError(f"--all counts what is set already; leave --{given[0].replace('_', '-')} out")
    if args.all:
        wanted = [(model, name) for model in LANGUAGE_MODELS for name in list(SETTINGS)[:2]]
        wanted += [(LANGUAGE_MODELS[0], name) for name in list(SETTINGS)[2:]]
        return [count(model, name, **SETTINGS[name]) for model, name in wanted]
    chosen = {name: getattr(args, name) for name in options if getattr(args, name) is not None}
    shown = ", ".join(f"{name} {value}" for name, value in chosen.items()) or "default"
    return [count(args.language_model or LANGUAGE_MODELS[0], shown, **chosen)]


def count(language_model: str, setting: str, **options: Any) -> dict[str, Any]:
    """The setting and its :func:`petx.tuners.parameter_counts`; ``options`` as in :class:`petx.tuners.PetalConfig`."""
    from peft import get_peft_model  # here, so that `petx --help` and a mistyped option stay quick

    from petx.models import build_instruct_blip
    from petx.tuners import PetalConfig, parameter_counts

    model = get_peft_model(build_instruct_blip(language_model), PetalConfig(**options))
    return {"language_model": language_model, "setting": setting, **parameter_counts(model)}
