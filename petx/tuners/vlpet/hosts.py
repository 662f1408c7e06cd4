"""Where VL-PET goes in each kind of host, and the released sizes: one entry per kind, found by model type."""

from typing import Any

from petx.errors import UserError

__all__ = ["PRESETS", "preset_of", "sites_named"]

# Sizes and initialisation of the released code, and where it inserts its modules. A site is the last linear layer of a
# frozen sub-layer ("output", a pattern for its full path); "input" is the module whose first input is the sub-layer's
# residual input X, "mask" the one that is called with `attention_mask=`, both written in terms of the pattern's groups.
# "further_decoder_sites" are the paper's other places, which only a configuration that asks for them adapts.
# Sizes for models that nobody published VL-PET for: it starts as the frozen model, with scale 2 at a gate of one half.
_AS_FROZEN = dict(rank=96, heads=4, decoder_rank=96, init="uniform", zero_init_up=True, zero_init_gate=True)

PRESETS: dict[str, dict[str, Any]] = {
    "bart": {
        "model_types": ("bart", "vl_bart", "florence2"),
        "defaults": dict(
            rank=96, heads=4, scale=1.0, decoder_rank=96, init="normal", zero_init_up=False, zero_init_gate=False
        ),
        "encoder_sites": [
            dict(
                name="attention output",
                output=r"((?:.*\.)?encoder\.layers\.\d+\.self_attn)\.out_proj",
                input=r"\1.q_proj",
                mask=r"\1",
            ),
            dict(
                name="feed-forward output",
                output=r"((?:.*\.)?encoder\.layers\.\d+)\.fc2",
                input=r"\1.fc1",
                mask=r"\1.self_attn",
            ),
        ],
        "decoder_sites": [
            dict(
                name="cross-attention value",
                output=r"((?:.*\.)?decoder\.layers\.\d+\.encoder_attn)\.v_proj",
                mask=r"\1",
            ),
        ],
        "further_decoder_sites": [
            dict(
                name="cross-attention key",
                output=r"((?:.*\.)?decoder\.layers\.\d+\.encoder_attn)\.k_proj",
                mask=r"\1",
            ),
        ],
    },
    "t5": {
        "model_types": ("t5", "vl_t5"),
        "defaults": dict(
            rank=192, heads=4, scale=0.3, decoder_rank=96, init="uniform", zero_init_up=True, zero_init_gate=True
        ),
        # X is the residual stream before the sub-layer's norm, so the sub-layer itself is tapped, not what it wraps.
        "encoder_sites": [
            dict(
                name="attention output",
                output=r"((?:.*\.)?encoder\.block\.\d+\.layer\.0)\.SelfAttention\.o",
                input=r"\1",
                mask=r"\1",
            ),
            dict(
                name="feed-forward output",
                output=r"((?:.*\.)?encoder\.block\.\d+\.layer)\.1\.DenseReluDense\.wo",
                input=r"\1.1",
                mask=r"\1.0",
            ),
        ],
        "decoder_sites": [
            dict(
                name="cross-attention value",
                output=r"((?:.*\.)?decoder\.block\.\d+\.layer\.1)\.EncDecAttention\.v",
                mask=r"\1",
            ),
        ],
        "further_decoder_sites": [
            dict(
                name="cross-attention key",
                output=r"((?:.*\.)?decoder\.block\.\d+\.layer\.1)\.EncDecAttention\.k",
                mask=r"\1",
            ),
        ],
    },
    # A norm stands before and behind each sub-layer. The decoder's attention is merged: one value projection of its own
    # tokens and of the encoder's, so the value adapter reads both.
    "t5gemma2": {
        "model_types": ("t5gemma2",),
        "defaults": _AS_FROZEN,
        "encoder_sites": [
            dict(
                name="attention output",
                output=r"((?:.*\.)?encoder\.text_model\.layers\.\d+)\.self_attn\.o_proj",
                input=r"\1.pre_self_attn_layernorm",
            ),
            dict(
                name="feed-forward output",
                output=r"((?:.*\.)?encoder\.text_model\.layers\.\d+)\.mlp\.down_proj",
                input=r"\1.pre_feedforward_layernorm",
            ),
        ],
        "decoder_sites": [
            dict(name="merged attention value", output=r"(?:.*\.)?decoder\.layers\.\d+\.self_attn\.v_proj")
        ],
        "further_decoder_sites": [
            dict(name="merged attention key", output=r"(?:.*\.)?decoder\.layers\.\d+\.self_attn\.k_proj")
        ],
    },
    # A decoder-only language model, whose sites decoder_only.py finds; only if it is asked for.
    "decoder": {"model_types": (), "defaults": _AS_FROZEN, "decoder_sites": [], "further_decoder_sites": []},
}


def preset_of(model_type: str | None) -> str | None:
    """Name of the preset made for a transformers ``model_type``, or None."""
    return next((name for name, preset in PRESETS.items() if model_type in preset["model_types"]), None)


def sites_named(model_type: str | None, names: list[str]) -> dict[str, list[dict[str, str]]]:
    """``encoder_sites`` and ``decoder_sites`` of a configuration for the places in ``names``, such as
    ``"attention output"`` or ``"cross-attention key"``; UserError if this model has no such place."""
    found = preset_of(model_type)
    if found is None:
        raise UserError(f"VL-PET: no places are known by name in a {model_type!r} model; give encoder_sites")
    preset = PRESETS[found]
    sides = {
        "encoder_sites": preset["encoder_sites"],
        "decoder_sites": [*preset["decoder_sites"], *preset["further_decoder_sites"]],
    }
    known = [site["name"] for sites in sides.values() for site in sites]
    for name in names:
        if name not in known:
            raise UserError(f"VL-PET: unknown place {name!r}; there are: {', '.join(known)}")
    return {side: [site for site in sites if site["name"] in names] for side, sites in sides.items()}
