"""Where VL-PET goes in a decoder-only language model: the sites of ``preset="decoder"``, found by names.

The paper's encoder is where vision and text meet; in a decoder-only model that is the language model itself, so its
attentions' and feed-forwards' outputs get the encoder's modules. There is no cross-attention and no decoder value.
"""

import re
from typing import Any

from torch import nn

from petx.errors import UserError
from petx.tuners._common.language_model import language_model
from petx.tuners._common.paths import base_of, plain_modules

__all__ = ["decoder_only_sites", "norms_root"]

LAYER = r"\.(?:layers|h|blocks)\.\d+"
ATTENTION_OUTPUT = re.compile(r"(\w*att\w*)\.(o_proj|out_proj|dense|c_proj|wo)")
FEED_FORWARD_OUTPUT = re.compile(r"(mlp|feed_forward|ffn)\.(down_proj|fc2|w2|c_proj|dense_4h_to_h|wo)")
# The norm that a sub-layer begins with, whose input is what its residual connection adds.
BEFORE_ATTENTION = ("input_layernorm", "pre_self_attn_layernorm", "ln_1", "attention_norm", "operator_norm")
BEFORE_FEED_FORWARD = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "ffn_norm")


def decoder_only_sites(model: nn.Module) -> list[dict[str, str]]:
    """Entries of ``encoder_sites`` for the language model in ``model``; UserError if it has no such sub-layers."""
    root, modules = language_model(model), plain_modules(model)
    if root is None or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise UserError(
            f"VL-PET: preset='decoder' is for a decoder-only language model, and {type(model).__name__} has none that "
            "get_decoder() finds; name its modules in encoder_sites, with preset 'bart' or 't5' for the sizes"
        )
    layer = re.compile(rf"{re.escape(root)}{LAYER}")
    layers = [path for path in modules if layer.fullmatch(path)]
    sites = []
    for name, output, before in (
        ("attention output", ATTENTION_OUTPUT, BEFORE_ATTENTION),
        ("feed-forward output", FEED_FORWARD_OUTPUT, BEFORE_FEED_FORWARD),
    ):
        found: dict[str, dict[str, None]] = {}  # norm -> linears in a layer
        for path in modules:
            holder = next((one for one in layers if path.startswith(f"{one}.")), None)
            inside = path[len(holder) + 1 :] if holder else ""
            if holder and output.fullmatch(inside) and hasattr(base_of(modules[path]), "out_features"):
                norm = next((one for one in before if f"{holder}.{one}" in modules), "")
                found.setdefault(norm, {})[inside] = None
        if not found:
            raise UserError(
                f"VL-PET: preset='decoder' finds no {name} in the layers of {root}, by the names "
                f"{output.pattern!r}; name this model's modules in encoder_sites"
            )
        for norm, linears in found.items():
            ends = "|".join(map(re.escape, linears))
            site: dict[str, str] = dict(name=name, output=rf"({re.escape(root)}{LAYER})\.(?:{ends})")
            sites.append(site | (dict(input=rf"\1.{norm}") if norm else {}))
    return sites


def norms_root(model: Any, side: str, decoder_only: bool) -> Any:
    """The module whose norms are those of the ``side`` ("encoder" or "decoder"), or None.

    Of an encoder that holds a vision tower beside its text model (T5Gemma 2), the text model.
    """
    if decoder_only:
        return model.get_decoder() if side == "encoder" else None
    stack = getattr(model, f"get_{side}", lambda: None)()
    return getattr(stack, "text_model", stack)
