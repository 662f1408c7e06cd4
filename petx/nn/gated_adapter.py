"""Drop-in modules for VL-PET's granularity-controlled adapter (arXiv 2308.09804, section 3)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from petx._checks import (
    check_choice,
    check_finite,
    check_flag,
    check_not_negative,
    check_probability,
    check_size,
    refuse_type,
)
from petx.functional._gated_adapter import site
from petx.functional._gated_adapter_options import OPTIONS
from petx.nn._parameters import Device, place_of, weight_and_bias
from petx.nn.phm_linear import PHMLinear

__all__ = ["GatedAdapter", "Tail"]

DESIGNS = ("down", "up", "down-up", "down-up-pair")


class Tail(NamedTuple):
    """What follows a site in the layer around it: ``norm(x + dropout(·))``, with the layer's own parameters.

    ``dropout`` is the probability of this call (0 in evaluation mode); ``norm`` is None, ``"layer"`` or ``"rms"``, of
    ``weight [d]``, ``bias [d]`` or None, and ``eps``. Its values are checked by the call that takes it, which raises
    ValueError naming what is wrong.
    """

    dropout: float = 0.0
    norm: str | None = None
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    eps: float = 1e-5


class GatedAdapter(nn.Module):
    r"""The VL-PET site :math:`s\,G \odot (H + \Delta H)`, optionally with dropout, residual and norm (arXiv 2308.09804,
    section 3).

    Args:
        features: width d of ``h``.
        rank: total bottleneck r of the modular modification; must be divisible by ``heads``.
        heads: number of heads :math:`N_h`; must divide ``rank`` for designs with a multi-head down projection and
            ``features`` for those with a multi-head up projection.
        design: ``"down"``, ``"up"``, ``"down-up"`` or ``"down-up-pair"``. The first three are one function, an
            adapter with the heads' weights stacked (concatenation commutes with an element-wise activation), and are
            stored so; ``"down-up-pair"`` has a block-diagonal up projection ``[d, r / heads]``.
        granularity: ``"large"``, ``"middleX"``, ``"middleY"``, ``"small"`` or ``"none"``.
        gate_rank: bottleneck :math:`r_g` of the low-rank gate (``"large"`` only; default ``rank``).
        bias: biases in every projection.
        activation: ``"gelu_tanh"`` (default, the released code) or ``"gelu"`` (exact).
        gate_input: what the ``middleX`` and ``small`` gates read: ``"modified"`` (H + ΔH, released code) or
            ``"original"`` (H, the paper).
        middle_y: ``"linear"`` (1 + z, released code) or ``"sigmoid"`` (1 + σ(z), the paper).
        placement: ``"sequential"`` (the modification reads ``h``) or ``"parallel"`` (it reads ``x``).
        x_features: width of ``x``; may differ from ``features`` only if nothing but a parallel modification or a
            large gate reads it.
        scale: the constant s.
        dropout: probability of the frozen layer's dropout after the gate (training only).
        residual: add ``x`` after dropout.
        norm: ``None``, ``"layer"`` or ``"rms"``, applied last, with its own ``norm_weight`` (and ``norm_bias``).
        eps: of the norm.
        modification: ``"linear"`` or ``"phm"``, Compacter's sum of Kronecker products of order ``phm_order``.
        init: ``"normal"`` (N(0, ``init_std``²), zero biases: BART) or ``"uniform"`` (torch's Linear default: T5).
        zero_init_up, zero_init_gate: then set the up projection, resp. the gate's last layer, to zero (T5).

    Shape: ``h [..., L, d]``, ``x [..., L, d]``, ``padding_mask [..., L]`` (True if a token counts), gives
    ``[..., L, d]``.
    Any floating dtype; parameters are cast to ``h``'s dtype, gradients come back in their own. With a residual, ``x``
    may be float32 beside an ``h`` in 16 bits; then the norm and the result are float32, too.

    ``down``, ``up``, ``gate_down`` and ``gate`` only hold the weights, which one operation reads: they are not called,
    so hooks on them do not run, and a wrapper around one of them changes nothing but its ``weight`` and ``bias``.

    Raises ValueError naming the argument, what came and what was wanted.
    """

    def __init__(
        self,
        features: int,
        rank: int,
        heads: int = 4,
        *,
        design: str = "down",
        granularity: str = "large",
        gate_rank: int | None = None,
        bias: bool = True,
        activation: str = "gelu_tanh",
        gate_input: str = "modified",
        middle_y: str = "linear",
        placement: str = "sequential",
        x_features: int | None = None,
        scale: float = 1.0,
        dropout: float = 0.0,
        residual: bool = False,
        norm: str | None = None,
        eps: float = 1e-5,
        modification: str = "linear",
        phm_order: int = 2,
        init: str = "normal",
        init_std: float = 0.02,
        zero_init_up: bool = False,
        zero_init_gate: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(features, rank, heads, design)
        options: dict[str, str | None] = dict(granularity=granularity, activation=activation, gate_input=gate_input)
        options |= dict(middle_y=middle_y, placement=placement, norm=norm)
        for name, value in options.items():
            check_choice("GatedAdapter", name, value, OPTIONS[name])
        check_choice("GatedAdapter", "modification", modification, ("linear", "phm"))
        check_choice("GatedAdapter", "init", init, ("normal", "uniform"))
        for name, size in dict(gate_rank=gate_rank, x_features=x_features, phm_order=phm_order).items():
            if size is not None or name == "phm_order":
                check_size("GatedAdapter", **{name: size})
        check_flag("GatedAdapter", bias=bias, residual=residual)
        check_flag("GatedAdapter", zero_init_up=zero_init_up, zero_init_gate=zero_init_gate)
        check_finite("GatedAdapter", scale=scale)
        check_probability("GatedAdapter", dropout=dropout)
        check_not_negative("GatedAdapter", eps=eps, init_std=init_std)
        if modification == "phm" and design == "down-up-pair":
            raise ValueError(
                "GatedAdapter: modification='phm' has no block-diagonal form, so not design='down-up-pair'"
            )
        self.granularity, self.placement, self.gate_input = granularity, placement, gate_input
        self.activation, self.middle_y, self.norm = activation, middle_y, norm
        self.features, self.rank, self.heads, self.design = features, rank, heads, design
        self.x_features = features if x_features is None else x_features
        self.scale, self.dropout, self.residual, self.eps = float(scale), float(dropout), residual, float(eps)
        self.modification, self.init, self.init_std = modification, init, init_std
        self.zero_init_up, self.zero_init_gate = zero_init_up, zero_init_gate

        place = place_of("GatedAdapter", device, dtype)
        kind = dict(bias=bias, **place)
        read = features if placement == "sequential" else self.x_features
        self.down: nn.Linear | PHMLinear
        self.up: nn.Linear | PHMLinear
        if modification == "phm":
            self.down = PHMLinear(read, rank, order=phm_order, **kind)
            self.up = PHMLinear(rank, features, order=phm_order, **kind)
        else:
            self.down = nn.Linear(read, rank, **kind)
            self.up = nn.Linear(rank // self.blocks, features, **kind)  # [d, r / heads] for the pair
        self.gate_down = self.gate = None
        if granularity == "large":
            gate_rank = rank if gate_rank is None else gate_rank
            self.gate_down = nn.Linear(self.x_features, gate_rank, **kind)
            self.gate = nn.Linear(gate_rank, features, **kind)
        elif granularity == "middleX":
            self.gate = nn.Linear(features, 1, **kind)
        elif granularity == "small":
            self.gate = nn.Linear(2 * features, 1, **kind)
        elif granularity == "middleY":
            self.gate_scale = nn.Parameter(torch.empty(features, **place))
        self.norm_weight = nn.Parameter(torch.empty(features, **place)) if norm else None
        self.norm_bias = nn.Parameter(torch.empty(features, **place)) if norm == "layer" else None
        self.reset_parameters()

    @property
    def blocks(self) -> int:
        """Diagonal blocks of the up projection: ``heads`` for the pair, else 1."""
        return self.heads if self.design == "down-up-pair" else 1

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Every weight as ``init``, ``zero_init_up`` and ``zero_init_gate`` say; the norm starts as the identity."""
        for layer in (self.down, self.up, self.gate_down, self.gate):
            if layer is None:
                continue
            layer.reset_parameters()
            if self.init == "normal" and isinstance(layer, nn.Linear):
                layer.weight.normal_(0, self.init_std)
            if self.init == "normal" and layer.bias is not None:
                layer.bias.zero_()
        if self.granularity == "middleY":
            self.gate_scale.normal_(0, self.init_std)
        for zero, layer in ((self.zero_init_up, self.up), (self.zero_init_gate, self.gate)):
            if zero and layer is not None:
                # A PHM weight is a product: with both factors at zero it would never move.
                (layer.factor if isinstance(layer, PHMLinear) else layer.weight).zero_()
                if layer.bias is not None:
                    layer.bias.zero_()
        if self.zero_init_gate and self.granularity == "middleY":
            self.gate_scale.zero_()
        if self.norm_weight is not None:
            self.norm_weight.fill_(1.0)
        if self.norm_bias is not None:
            self.norm_bias.zero_()

    def forward(
        self, h: Tensor, x: Tensor | None = None, padding_mask: Tensor | None = None, *, tail: Tail | None = None
    ) -> Tensor:
        """``h [..., L, d]`` gives ``[..., L, d]``.

        ``x [..., L, d_x]``, the residual branch's input, is needed by the granularities ``large``, ``middleX`` and
        ``small``, a parallel modification and a residual. ``padding_mask [..., L]``, non-zero if a token counts, is for
        the mean of ``small``. ``tail`` ends this call as the layer around does, in place of the module's own
        ``dropout``, ``residual`` and ``norm``.
        """
        layers, granularity = self._modules, self.granularity
        norm_weight: Tensor | None
        norm_bias: Tensor | None
        if tail is None:
            norm, norm_weight, norm_bias = self.norm, self.norm_weight, self.norm_bias
            residual, dropout, eps = self.residual, self.dropout if self.training else 0.0, self.eps
        else:
            if type(tail) is not Tail:
                refuse_type("GatedAdapter", "tail", "a Tail or None", tail)
            norm, norm_weight, norm_bias = tail[1:4]
            residual, dropout, eps = True, tail.dropout, tail.eps
        gate: tuple[Tensor | None, ...]
        if granularity == "large":
            gate = (*weight_and_bias(layers["gate_down"]), *weight_and_bias(layers["gate"]))
        elif granularity == "middleY":
            gate = (None, None, self.gate_scale, None)
        else:
            gate = (None, None, *weight_and_bias(layers.get("gate")))
        return site(
            (h, x, *weight_and_bias(layers["down"]), *weight_and_bias(layers["up"]), *gate, norm_weight, norm_bias),
            padding_mask,
            None,
            (granularity, self.activation, self.gate_input, self.middle_y, self.placement, norm),
            self.heads if self.design == "down-up-pair" else 1,
            residual,
            self.scale,
            dropout,
            eps,
        )

    def extra_repr(self) -> str:
        shown = f"features={self.features}, rank={self.rank}, heads={self.heads}, design={self.design!r}"
        shown += f", granularity={self.granularity!r}, scale={self.scale}"
        if self.modification != "linear":
            shown += f", modification={self.modification!r}"
        if self.placement != "sequential":
            shown += f", placement={self.placement!r}, x_features={self.x_features}"
        if self.dropout or self.residual or self.norm:
            shown += f", dropout={self.dropout}, residual={self.residual}, norm={self.norm!r}"
        return shown


def _check_sizes(features: int, rank: int, heads: int, design: str) -> None:
    check_choice("GatedAdapter", "design", design, DESIGNS)
    check_size("GatedAdapter", features=features, rank=rank, heads=heads)
    if "down" in design and rank % heads:
        raise ValueError(f"GatedAdapter: heads must divide rank for design={design!r}, got heads={heads}, rank={rank}")
    if "up" in design and features % heads:
        raise ValueError(
            f"GatedAdapter: heads must divide features for design={design!r}, got heads={heads}, features={features}"
        )
