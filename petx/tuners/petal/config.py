"""What PETAL adapts and how: the configuration, and the released code's choices as a preset."""

import math
from dataclasses import dataclass, field
from typing import Any, NoReturn

from petx.errors import UserError
from petx.nn.context_enhancement import CONTEXTS
from petx.nn.expert_mixture import ACTIVATIONS, GATES
from petx.nn.mode_cores import FORMS, THRESHOLDS
from petx.tuners._common.card import AdapterConfig
from petx.tuners._common.config import check_fields, takes_no
from petx.tuners._register import add_peft_type

__all__ = ["PETAL_PRESETS", "PetalConfig"]

# "released" differs from the defaults in one thing, the coupling of a batch's samples, which has to be asked for.
# "paper" is what the paper says of the same parts; the form of its threshold is our reading.
PETAL_PRESETS = {
    "released": {"context": "batch_mean"},
    "paper": {"core": "diagonal", "threshold": "soft", "expert_gate": "token", "expert_scope": "text"},
}

CHOICES = {
    "form": ("factored", "explicit"),
    "core": FORMS,
    "threshold": THRESHOLDS,
    "expert_gate": GATES,
    "expert_scope": ("all", "text", "image"),
    "expert_activation": ACTIVATIONS,
    "context": CONTEXTS,
    "init_modes": ("xavier", "ones", "zeros"),
    "init_output": ("zeros", "uniform"),
}


@takes_no("towers says which parts of the model are adapted")
@dataclass
class PetalConfig(AdapterConfig):
    r"""Configuration of PETAL (arXiv 2312.12458): every adapted projection gets :math:`V M(p)^\top U x`, with factors
    U, V and a core that all layers share and a mode vector p of its own; a mixture of experts reads the embeddings of
    instruction and queries once; every layer gets a small residual of its self-attention.

    The defaults are the released code's, except ``context``, which couples the samples of a batch and is off.
    ``PetalConfig.preset("released")`` and ``PetalConfig.preset("paper")`` are the two whole sets.

    ``form="explicit"`` writes every adapted weight out, W' = W + gate(V M(p)ᵀ U), so that the threshold acts on the
    entries of the update instead of on the core. Its cost: a copy of every adapted weight in the base's dtype while a
    pass runs, kept for the backward; the gradient of every one of them, as in full tuning, 2·T·d_in·d_out operations
    for T tokens beside the factored form's 4·T·R·d; no dropout of U x, which does not exist. In bfloat16 an entry of
    the update below 2⁻⁹ of its weight is lost. Merging gives the weights of the training pass bit for bit.

    Raises UserError (a ValueError) for an unknown option, and for one with which something could never train.
    """

    form: str = field(
        default="factored",
        metadata={"help": "factored: beside the frozen linear; explicit: W + gate(V M U), whole weights."},
    )
    rank: int = field(default=64, metadata={"help": "R, of the factors U and V and of the core."})
    image_rank: int | None = field(
        default=None,
        metadata={
            "help": "R of the factors that read a Q-Former's image features, whose U is the widest; default: rank."
        },
    )
    core: str = field(default="full", metadata={"help": "full: [R, R, R] (released code); diagonal: λ [R] (paper)."})
    threshold: str = field(
        default="none",
        metadata={"help": "Learnable Γ on the core, or on an explicit update: none, soft, hard or sigmoid."},
    )
    threshold_per_rank: bool = field(default=False, metadata={"help": "A Γ for every index of the rank."})
    threshold_init: float = field(default=0.0, metadata={"help": "Where Γ starts."})
    temperature: float = field(default=1.0, metadata={"help": "Of threshold='sigmoid'."})
    dropout: float = field(default=0.1, metadata={"help": "Of U x, while training."})
    shared_mask: bool = field(
        default=False, metadata={"help": "One dropout mask for query, key and value (released code: three)."}
    )
    share_image_core: bool = field(
        default=False, metadata={"help": "The image factors use the text factors' core (released code: their own)."}
    )
    experts: int = field(default=6, metadata={"help": "K experts; 0 for none."})
    expert_rank: int = field(default=64, metadata={"help": "Bottleneck of an expert."})
    expert_gate: str = field(
        default="uniform", metadata={"help": "uniform (released code), or a gating network: token or sample (paper)."}
    )
    expert_top_k: int | None = field(default=None, metadata={"help": "Experts that a gating network keeps; None: all."})
    expert_scope: str = field(
        default="all", metadata={"help": "Tokens that experts read: all (released code), text or image (LLaVA only)."}
    )
    expert_alpha: float = field(default=0.6, metadata={"help": "Weight of the embedding itself."})
    expert_beta: float = field(default=0.4, metadata={"help": "Weight of the experts."})
    expert_activation: str | None = field(default=None, metadata={"help": "None, relu, gelu or gelu_tanh."})
    query_transform: bool = field(
        default=True, metadata={"help": "Add 0.1 (A ⊙ a + b), A the self-attention's output, to every layer's output."}
    )
    cross_query_transform: bool = field(
        default=False,
        metadata={"help": "The same of what enters the query feed-forward (released code: parameters, never used)."},
    )
    context: str = field(
        default="off",
        metadata={
            "help": "Context for the first query token: off, batch_mean (released code; couples the samples of a "
            "batch) or per_sample."
        },
    )
    context_weight: float = field(default=0.1, metadata={"help": "Weight of the context."})
    init_modes: str = field(default="xavier", metadata={"help": "Mode vectors start xavier (uniform), ones or zeros."})
    init_output: str = field(default="zeros", metadata={"help": "V starts at zeros, or uniform as U does."})
    towers: list[str] | None = field(
        default=None,
        metadata={"help": "Parts of the model to adapt, by name; default: the Q-Former, else the language model."},
    )
    projector: str | None = field(
        default=None,
        metadata={"help": "Module whose output the experts read as the image's; default: found by name and width."},
    )
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules to train whole and save."})
    host: dict | None = field(
        default=None, metadata={"help": "Filled in: the model this configuration was resolved for."}
    )

    # PEFT reads this attribute; the tuner fills in the paths that it found. Not a field, and not saved.
    target_modules = None  # type: tuple[str, ...] | None

    @classmethod
    def preset(cls, name: str, **options: Any) -> "PetalConfig":
        """The configuration called ``"released"`` or ``"paper"``, with ``options`` on top."""
        if name not in PETAL_PRESETS:
            raise UserError(f"PetalConfig: the presets are {', '.join(map(repr, PETAL_PRESETS))}, got {name!r}")
        return cls(**PETAL_PRESETS[name] | options)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = add_peft_type("PETAL")
        for name, known in CHOICES.items():
            if not isinstance(getattr(self, name), str | None) or getattr(self, name) not in known:
                _refuse(f"{name} must be one of {', '.join(map(repr, known))}, got {getattr(self, name)!r}")
        if isinstance(self.towers, str) or self.towers is not None and not self.towers:
            _refuse(f"towers must be a list of at least one name, got {self.towers!r}")
        check_fields(self, {"rank": 1, "image_rank": 1, "experts": 0, "expert_rank": 1})
        if self.share_image_core and self.image_rank not in (None, self.rank):
            _refuse(f"with share_image_core=True image_rank must be rank={self.rank}, got {self.image_rank}")
        if self.projector is not None and not self.experts:
            _refuse(f"projector={self.projector!r} says what the experts read, and there are none with experts=0")
        if self.projector is not None and self.expert_scope == "text":
            _refuse(f"with expert_scope='text' the experts do not read projector={self.projector!r}")
        if not 0 <= self.dropout < 1:
            _refuse(f"dropout must be in [0, 1), got {self.dropout}")
        if self.form == "explicit" and self.dropout > 0:
            _refuse(f"with form='explicit' there is no U x to drop; set dropout=0, got {self.dropout:g}")
        if self.form == "explicit" and self.threshold_per_rank:
            _refuse("with form='explicit' Γ acts on the entries of the update; threshold_per_rank=True has no meaning")
        if self.temperature <= 0:
            _refuse(f"temperature must be positive, got {self.temperature}")
        if self.expert_top_k is not None and (
            self.expert_gate == "uniform" or not 1 <= self.expert_top_k <= self.experts
        ):
            _refuse(
                "expert_top_k must be from 1 to experts and needs expert_gate='token' or 'sample', "
                f"got {self.expert_top_k} with experts={self.experts}, expert_gate={self.expert_gate!r}"
            )
        self._refuse_what_never_trains()

    def rank_of(self, factors: str) -> int:
        """Rank of the factors called ``factors``: ``image_rank`` for ``"image"`` where it is given, else ``rank``."""
        return self.image_rank if factors == "image" and self.image_rank is not None else self.rank

    def _refuse_what_never_trains(self) -> None:
        if self.init_modes == "zeros" and self.init_output == "zeros":
            _refuse(
                "with init_modes='zeros' and init_output='zeros' nothing would ever train: the gradient of V contains "
                "the mode vectors, that of everything else contains V, and all of them are zero"
            )
        if self.form == "explicit":
            if self.threshold == "soft" and self.init_output == "zeros":
                _refuse(
                    "with form='explicit', threshold='soft' and init_output='zeros' nothing would ever train: every "
                    "update starts at zero, and no gradient passes the threshold there; use init_output='uniform', or "
                    "threshold='hard' or 'sigmoid'"
                )
            return self._refuse_idle_experts()
        largest = math.sqrt(3) / max(self.rank, self.rank_of("image")) if self.core == "full" else 1.0
        if self.threshold == "soft" and self.threshold_init >= largest:
            _refuse(
                f"with threshold='soft' and threshold_init={self.threshold_init:g} the whole core would be cut off: "
                f"its entries start at {largest:.4g} and below, and no gradient passes the threshold"
            )
        if self.threshold == "hard" and self.threshold_init >= largest and self.init_output == "zeros":
            _refuse(
                f"with threshold='hard' and threshold_init={self.threshold_init:g} the whole core would be cut off "
                "while V is zero, so nothing would ever train"
            )
        self._refuse_idle_experts()

    def _refuse_idle_experts(self) -> None:
        if self.experts and self.expert_beta == 0:
            _refuse("with expert_beta=0 the experts would never train; set experts=0 for none")

    def resolve(self, model_type: str | None) -> None:
        """Nothing depends on the model's type alone: ``towers`` is filled in from the model (places.find_places)."""
        if self.towers is not None:
            self.towers = list(dict.fromkeys(self.towers))


def _refuse(why: str) -> NoReturn:
    raise UserError(f"PetalConfig: {why}")
