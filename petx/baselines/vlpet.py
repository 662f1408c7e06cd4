"""VL-PET itself."""

from typing import Any

from peft import get_peft_model
from torch import nn
from transformers import AutoConfig

from petx.baselines.base import Baseline
from petx.errors import UserError
from petx.hosts import Host
from petx.nn import GatedAdapter, ValueAdapter
from petx.tuners import VLPetConfig
from petx.tuners.vlpet.hosts import sites_named

# What the settings encoder_places and decoder_places call the tuner's places.
ENCODER_PLACES = {"attention": "attention output", "feed-forward": "feed-forward output"}
DECODER_PLACES = ("value", "key")
MERGED = ("t5gemma2",)  # model types whose decoder attends to its own tokens and the encoder's at once
# Settings that say nothing of a decoder-only language model, with their defaults.
OF_ENCODER_DECODERS: dict[str, Any] = {
    "encoder_places": list(ENCODER_PLACES),
    "decoder_places": ["value"],
    "decoder_level": "none",
    "train_decoder_norms": False,
}


class VLPet(Baseline):
    """VL-PET: adapters and gate in the encoder, value adapters in the decoder, encoder norms, visual embedding."""

    name, title, colour, order = "vlpet", "VL-PET-{level}", "#D55E00", 20
    methods = ("vlpet",)
    own = (
        *("level", "design", "rank", "gate_rank", "decoder_rank", "heads", "scale", "zero_init"),
        *("encoder_places", "decoder_places", "decoder_level", "placement", "gate_input", "middle_y", "mask_padding"),
        *("activation", "use_bias", "train_encoder_norms", "train_decoder_norms"),
    )

    def reads(self, settings: Any) -> set[str]:
        unread = set()
        if not settings.encoder_places:
            unread |= {"level", "design", "rank", "heads", "scale", "placement"}
        if not settings.encoder_places or settings.level != "large":
            unread |= {"gate_rank"}
        if not settings.decoder_places:
            unread |= {"decoder_rank", "decoder_level"}
        return super().reads(settings) - unread

    def unread_on(self, host: type[Host], settings: Any) -> set[str]:
        if settings.host is None or host.vlpet_preset(AutoConfig.from_pretrained(settings.host)) != "decoder":
            return set()
        return {"decoder_rank", *OF_ENCODER_DECODERS}

    def build(self, host: type[Host], model: Any, settings: Any) -> nn.Module:
        config = vlpet_config(settings, model.config.model_type, host.vlpet_preset(model.config))
        return get_peft_model(model, config)

    sized = build  # what other baselines are made as large as


def vlpet_config(settings: Any, model_type: str, preset: str = "auto") -> VLPetConfig:
    """The tuner's configuration for the recipe's ``settings`` on a host of ``model_type``, by the tuner's ``preset``.

    Raises UserError for places that a decoder-only language model does not have.
    """
    encoder, decoder = settings.encoder_places, settings.decoder_places
    alone = preset == "decoder"
    if alone:
        _check_decoder_only(settings)
    places: dict[str, Any] = {}
    if set(encoder) != set(ENCODER_PLACES) or set(decoder) not in ({"value"}, set()):
        attention = "merged attention" if model_type in MERGED else "cross-attention"
        names = [ENCODER_PLACES[one] for one in encoder] + [f"{attention} {one}" for one in decoder]
        places = dict(sites_named(model_type, names))
    return VLPetConfig(
        task_type="CAUSAL_LM" if alone else "SEQ_2_SEQ_LM",
        preset=preset,
        granularity=settings.level,
        design=settings.design,
        rank=settings.rank,
        heads=settings.heads,
        gate_rank=settings.gate_rank,
        placement=settings.placement,
        gate_input=settings.gate_input,
        middle_y=settings.middle_y,
        mask_padding=settings.mask_padding,
        activation=settings.activation,
        use_bias=settings.use_bias,
        scale=1.0 if settings.scale is None and not alone else settings.scale,
        zero_init_up=settings.zero_init or None,
        zero_init_gate=settings.zero_init or None,
        decoder_value=bool(decoder),
        decoder_rank=settings.decoder_rank,
        decoder_granularity=settings.decoder_level,
        train_encoder_norms=settings.train_encoder_norms,
        train_decoder_norms=settings.train_decoder_norms,
        **places,
    )


def _check_decoder_only(settings: Any) -> None:
    for name, wanted in OF_ENCODER_DECODERS.items():
        given = getattr(settings, name)
        if given != wanted and not (isinstance(wanted, list) and set(given) == set(wanted)):
            raise UserError(
                f"{name}={given!r} is for encoder-decoders: in a decoder-only language model the attentions' and "
                "feed-forwards' outputs are adapted, and its norms are those of train_encoder_norms; leave it out"
            )


def check_sizes(settings: Any, width: int, preset: str = "auto") -> None:
    """Raise :class:`petx.errors.UserError` if VL-PET's modules do not fit a host of ``width``."""
    config = vlpet_config(settings, "bart", preset)  # places and sizes do not interact
    config.resolve("bart")
    try:
        GatedAdapter(width, **config.adapter_options("encoder"), device="meta")
        ValueAdapter(width, width, **config.adapter_options("decoder"), device="meta")
    except ValueError as error:
        raise UserError(f"VL-PET on a host of width {width}: {error}") from None


BASELINE = VLPet()
