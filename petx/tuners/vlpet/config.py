"""What VL-PET adapts and how: the configuration."""

from dataclasses import dataclass, field
from typing import Any

import regex

from petx.errors import UserError
from petx.functional._gated_adapter_options import check_options
from petx.nn.gated_adapter import DESIGNS
from petx.tuners._common.card import AdapterConfig
from petx.tuners._common.config import check_fields, takes_no
from petx.tuners._register import add_peft_type
from petx.tuners.vlpet.hosts import PRESETS, preset_of

__all__ = ["VLPetConfig", "needs_input"]


def needs_input(granularity: str, placement: str) -> bool:
    """Whether a module of this kind reads the sub-layer's input X beside its output H."""
    return placement == "parallel" or granularity in ("large", "middleX", "small")


@takes_no("encoder_sites and decoder_sites say which linear layers are adapted")
@dataclass
class VLPetConfig(AdapterConfig):
    r"""Configuration of VL-PET: :math:`H \leftarrow s\,G \odot (H + \Delta H)` at every encoder sub-layer, and
    :math:`V \leftarrow V + \Delta V` beside every decoder cross-attention value (arXiv 2308.09804).

    A field left at None takes the preset's value: for ``"bart"`` rank 96, 4 heads, scale 1.0, N(0, 0.02²)
    initialisation; for ``"t5"`` rank 192, 4 heads, scale 0.3, torch's uniform initialisation with the up projections
    and the gate's last layer at zero; for ``"t5gemma2"`` and ``"decoder"`` (a decoder-only language model) as for T5
    with rank 96 and the scale at which it starts as the frozen model: 2 for a gate of one half, else 1. ``gate_rank``
    defaults to ``rank``.

    Raises UserError (a ValueError) for an unknown option.
    """

    granularity: str = field(default="large", metadata={"help": "Gate G: large, middleX, middleY, small or none."})
    rank: int | None = field(default=None, metadata={"help": "Bottleneck r of the encoder modules (all heads)."})
    heads: int | None = field(default=None, metadata={"help": "Heads N_h of the encoder modules."})
    gate_rank: int | None = field(default=None, metadata={"help": "Bottleneck r_g of the large gate; default rank."})
    design: str = field(default="down", metadata={"help": f"Multi-head design: {', '.join(DESIGNS)}."})
    modification: str = field(
        default="linear", metadata={"help": "linear, or phm for Compacter's weights (encoder and decoder)."}
    )
    phm_order: int = field(default=2, metadata={"help": "Order n of the Kronecker sums of modification='phm'."})
    # Not `bias`: PEFT gives a field of that name its own meaning ("none", "all", ...).
    use_bias: bool = field(default=True, metadata={"help": "Biases in every projection."})
    activation: str = field(default="gelu_tanh", metadata={"help": "gelu_tanh (released code) or gelu (exact)."})
    gate_input: str = field(
        default="modified",
        metadata={"help": "middleX and small read H + delta H (modified, released code) or H (original, paper)."},
    )
    middle_y: str = field(
        default="linear", metadata={"help": "middleY is 1 + z (linear, released code) or 1 + σ(z) (sigmoid, paper)."}
    )
    placement: str = field(
        default="sequential", metadata={"help": "delta H reads H (sequential, released code) or X (parallel)."}
    )
    scale: float | None = field(default=None, metadata={"help": "Constant s of the encoder modules."})
    mask_padding: bool = field(
        default=False, metadata={"help": "Leave padding out of the mean of the small gate (released code: included)."}
    )
    init: str | None = field(default=None, metadata={"help": "normal (N(0, init_std^2), zero biases) or uniform."})
    init_std: float = field(default=0.02, metadata={"help": "Standard deviation of init='normal'."})
    zero_init_up: bool | None = field(default=None, metadata={"help": "Start every up projection at zero."})
    zero_init_gate: bool | None = field(default=None, metadata={"help": "Start the gate's last layer at zero."})
    decoder_value: bool = field(default=True, metadata={"help": "Adapt the decoder's cross-attention values."})
    decoder_rank: int | None = field(default=None, metadata={"help": "Bottleneck of the decoder's value adapters."})
    decoder_granularity: str = field(
        default="none", metadata={"help": "Gate of the decoder's value adapters (released code: none)."}
    )
    train_encoder_norms: bool = field(default=True, metadata={"help": "Train the encoder's normalisation layers."})
    train_decoder_norms: bool = field(default=False, metadata={"help": "Train the decoder's normalisation layers."})
    train_visual_embedding: bool = field(
        default=True, metadata={"help": "Train the model's submodule visual_embedding, if it has one."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules to train and save; norms and visual embedding are added."}
    )
    preset: str = field(default="auto", metadata={"help": "auto (by the model's type), bart, t5, t5gemma2 or decoder."})
    encoder_sites: list[dict] | None = field(
        default=None,
        metadata={"help": "Where to adapt the encoder: dicts of output (pattern), input, mask, name; default: preset."},
    )
    decoder_sites: list[dict] | None = field(
        default=None, metadata={"help": "Where to adapt the decoder's values: dicts of output (pattern), mask, name."}
    )
    host: dict | None = field(
        default=None, metadata={"help": "Filled in: the model this configuration was resolved for."}
    )

    # PEFT reads this attribute; the tuner fills in the paths that the sites' patterns matched. Not a field: it follows
    # from the sites and is not saved.
    target_modules = None  # type: tuple[str, ...] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = add_peft_type("VLPET")
        try:
            check_options(
                granularity=self.granularity,
                activation=self.activation,
                gate_input=self.gate_input,
                middle_y=self.middle_y,
                placement=self.placement,
            )
        except ValueError as error:
            raise UserError(str(error).replace("gated_adapter:", "VLPetConfig:")) from None
        try:
            check_options(granularity=self.decoder_granularity)
        except ValueError as error:
            raise UserError(str(error).replace("gated_adapter: ", "VLPetConfig: decoder_")) from None
        choices = {
            "design": DESIGNS,
            "modification": ("linear", "phm"),
            "init": (None, "normal", "uniform"),
            "preset": ("auto", *PRESETS),
        }
        for name, known in choices.items():
            if not isinstance(getattr(self, name), str | None) or getattr(self, name) not in known:
                raise UserError(
                    f"VLPetConfig: {name} must be one of {', '.join(map(repr, known))}, got {getattr(self, name)!r}"
                )
        check_fields(self, dict.fromkeys(("rank", "heads", "gate_rank", "decoder_rank", "phm_order"), 1))
        if self.init_std < 0:
            raise UserError(f"VLPetConfig: init_std must not be negative, got {self.init_std}")
        for name in ("encoder_sites", "decoder_sites"):
            for site in getattr(self, name) or ():
                fields = {"name", "output", "input", "mask"}
                if "output" not in site or set(site) - fields or not all(isinstance(v, str) for v in site.values()):
                    raise UserError(
                        f"VLPetConfig: every entry of {name} is a dict with 'output' and optionally 'input', 'mask' "
                        f"and 'name', got {site!r}"
                    )
                try:
                    regex.compile(site["output"])
                except regex.error as error:
                    raise UserError(
                        f"VLPetConfig: output {site['output']!r} in {name} is no pattern: {error}"
                    ) from None

    def resolve(self, model_type: str | None) -> None:
        """Fill fields left at None from the preset for ``model_type``; raises UserError if there is none."""
        if self.preset == "auto":
            found = preset_of(model_type)
            if found is None:
                known = ", ".join(kind for preset in PRESETS.values() for kind in preset["model_types"])
                raise UserError(
                    f"VLPetConfig: preset='auto' knows the model types {known}, not {model_type!r}; give preset="
                    "'decoder' for a decoder-only language model, or 'bart' or 't5' for the sizes with encoder_sites "
                    "and decoder_sites for this model's modules"
                )
            self.preset = found
        for name, value in PRESETS[self.preset]["defaults"].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.scale is None:  # a gate of one half starts as the frozen model
            self.scale = 2.0 if self.granularity in ("large", "middleX", "small") else 1.0
        if self.gate_rank is None:
            self.gate_rank = self.rank
        if self.preset == "decoder" and self.granularity == "small":
            raise UserError(
                "VLPetConfig: granularity='small' gates by a mean over all tokens of a sample, and in a decoder-only "
                "model these are the answer's later tokens too; use 'large', 'middleX' or 'middleY'"
            )

    def sites(self, side: str) -> list[dict[str, str]]:
        """Site descriptions for ``side`` ("encoder" or "decoder"): the field's, or the preset's."""
        if side == "decoder" and not self.decoder_value:
            return []
        given = getattr(self, f"{side}_sites")
        return PRESETS[self.preset][f"{side}_sites"] if given is None else given

    def adapter_options(self, side: str) -> dict[str, Any]:
        """Keyword arguments of :class:`petx.nn.GatedAdapter` (encoder) or :class:`petx.nn.ValueAdapter` (decoder)."""
        shared = ["activation", "gate_input", "middle_y", "modification", "phm_order", "init", "init_std"]
        shared += ["zero_init_up", "zero_init_gate"]
        options = {name: getattr(self, name) for name in shared} | {"bias": self.use_bias}
        if side == "decoder":
            rank = self.decoder_rank
            return options | dict(rank=rank, gate_rank=rank, granularity=self.decoder_granularity)
        own = ("rank", "heads", "gate_rank", "design", "granularity", "placement", "scale")
        return options | {name: getattr(self, name) for name in own}

    def reads_input(self, side: str) -> bool:
        """Whether the encoder modules need X, which a tap must bring; the decoder's is their own input."""
        return side == "encoder" and needs_input(self.granularity, self.placement)

    def reads_mask(self, side: str) -> bool:
        """Whether modules on ``side`` need the padding mask."""
        return self.mask_padding and "small" == (self.granularity if side == "encoder" else self.decoder_granularity)
