"""Drop-in modules for VL-PET's granularity-controlled adapter (arXiv 2308.09804, section 3)."""

import torch
from torch import nn

from petx import functional
from petx.functional.gated_adapter import check_options, site
from petx.nn._arguments import weight_and_bias
from petx.nn.phm import PHMLinear

__all__ = ["GatedAdapter", "ValueAdapter", "ValueAdapters"]

DESIGNS = ("down", "up", "down-up", "down-up-pair")


class GatedAdapter(nn.Module):
    r"""The VL-PET site :math:`s\,G \odot (H + \Delta H)`, optionally with dropout, residual and norm.

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
        x_features: width of ``x``; may differ from ``features`` only where nothing but a parallel modification
            reads it.
        scale: the constant s.
        dropout: probability of the host layer's dropout after the gate (training only).
        residual: add ``x`` after dropout.
        norm: ``None``, ``"layer"`` or ``"rms"``, applied last, with its own ``norm_weight`` (and ``norm_bias``).
        eps: of the norm.
        modification: ``"linear"`` or ``"phm"``, Compacter's sum of Kronecker products of order ``phm_order``.
        init: ``"normal"`` (N(0, ``init_std``²), zero biases: BART) or ``"uniform"`` (torch's Linear default: T5).
        zero_init_up, zero_init_gate: then set the up projection, resp. the gate's last layer, to zero (T5).

    Shape: ``h [..., L, d]``, ``x [..., L, d]``, ``padding_mask [..., L]`` (True where a token counts), gives
    ``[..., L, d]``.
    Any floating dtype; parameters are cast to ``h``'s dtype, gradients come back in their own.

    ``down``, ``up``, ``gate_down`` and ``gate`` only hold the weights, which one operation reads: they are not called,
    so hooks on them do not run, and a wrapper around one of them changes nothing but its ``weight`` and ``bias``.
    """

    def __init__(
        self,
        features,
        rank,
        heads=4,
        *,
        design="down",
        granularity="large",
        gate_rank=None,
        bias=True,
        activation="gelu_tanh",
        gate_input="modified",
        middle_y="linear",
        placement="sequential",
        x_features=None,
        scale=1.0,
        dropout=0.0,
        residual=False,
        norm=None,
        eps=1e-5,
        modification="linear",
        phm_order=2,
        init="normal",
        init_std=0.02,
        zero_init_up=False,
        zero_init_gate=False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        _check_sizes(features, rank, heads, design)
        options = dict(granularity=granularity, activation=activation, gate_input=gate_input, middle_y=middle_y)
        options.update(placement=placement, norm=norm)
        check_options(**options)
        if modification not in ("linear", "phm"):
            raise ValueError(f"GatedAdapter: modification must be 'linear' or 'phm', got {modification!r}")
        if modification == "phm" and design == "down-up-pair":
            raise ValueError(
                "GatedAdapter: modification='phm' has no block-diagonal form, so not design='down-up-pair'"
            )
        if init not in ("normal", "uniform"):
            raise ValueError(f"GatedAdapter: init must be 'normal' or 'uniform', got {init!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"GatedAdapter: dropout must be in [0, 1), got {dropout}")
        for name, value in options.items():
            setattr(self, name, value)
        self.features, self.rank, self.heads, self.design = features, rank, heads, design
        self.x_features = features if x_features is None else x_features
        self.scale, self.dropout, self.residual, self.eps = float(scale), float(dropout), bool(residual), eps
        self.modification, self.init, self.init_std = modification, init, init_std
        self.zero_init_up, self.zero_init_gate = zero_init_up, zero_init_gate

        kind = dict(bias=bias, device=device, dtype=dtype)
        place = dict(device=device, dtype=dtype)
        read = features if placement == "sequential" else self.x_features
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
    def blocks(self):
        """Diagonal blocks of the up projection: ``heads`` for the pair, else 1."""
        return self.heads if self.design == "down-up-pair" else 1

    @torch.no_grad()
    def reset_parameters(self):
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

    def forward(self, h, x=None, padding_mask=None):
        layers, granularity, norm = self._modules, self.granularity, self.norm
        tensors = (h, x, *weight_and_bias(layers["down"]), *weight_and_bias(layers["up"]))
        if granularity == "large":
            tensors += (*weight_and_bias(layers["gate_down"]), *weight_and_bias(layers["gate"]))
        elif granularity == "middleY":
            tensors += (None, None, self.gate_scale, None)
        else:
            tensors += (None, None, *weight_and_bias(layers.get("gate")))
        tensors += (self.norm_weight, self.norm_bias) if norm else (None, None)
        return site(
            tensors,
            padding_mask,
            None,
            (granularity, self.activation, self.gate_input, self.middle_y, self.placement, norm),
            self.heads if self.design == "down-up-pair" else 1,
            self.residual,
            self.scale,
            self.dropout if self.training else 0.0,
            self.eps,
        )

    def extra_repr(self):
        shown = f"features={self.features}, rank={self.rank}, heads={self.heads}, design={self.design!r}"
        shown += f", granularity={self.granularity!r}, scale={self.scale}"
        if self.modification != "linear":
            shown += f", modification={self.modification!r}"
        if self.placement != "sequential":
            shown += f", placement={self.placement!r}, x_features={self.x_features}"
        if self.dropout or self.residual or self.norm:
            shown += f", dropout={self.dropout}, residual={self.residual}, norm={self.norm!r}"
        return shown


class ValueAdapter(GatedAdapter):
    r"""VL-PET's decoder module beside a frozen value projection,
    :math:`V = v + \mathrm{up}(\mathrm{gelu}(\mathrm{down}(e)))`.

    ``e [..., L, in_features]`` is the encoder output, ``v [..., L, out_features]`` the frozen projection of it
    (arXiv 2308.09804, section 3.4). Parallel, one head, no gate, s = 1; other options as in :class:`GatedAdapter`.
    """

    def __init__(self, in_features, out_features, rank, *, heads=1, **options):
        options = {"granularity": "none", "placement": "parallel", "x_features": in_features} | options
        super().__init__(out_features, rank, heads, **options)

    def forward(self, e, v, padding_mask=None):
        return super().forward(v, e, padding_mask)


class ValueAdapters(nn.Module):
    r"""The :class:`ValueAdapter` of every decoder layer in one operation, since all read one encoder output
    (arXiv 2308.09804, section 3.4).

    ``e [..., L_e, in_features]`` is the encoder output, ``v [..., L_e, layers, out_features]`` the frozen value
    projections of it, as one product with the layers' weights stacked gives them. Each layer has its own parameters,
    stacked: ``down_weight [layers, rank, in_features]``, ``up_weight [layers, out_features, rank]`` and their biases.
    Weights start at N(0, ``init_std``²), biases at zero; ``zero_init_up`` starts the up projections at zero.
    """

    def __init__(
        self,
        in_features,
        out_features,
        rank,
        layers,
        *,
        bias=True,
        activation="gelu_tanh",
        scale=1.0,
        init_std=0.02,
        zero_init_up=False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        for name, value in dict(in_features=in_features, out_features=out_features, rank=rank, layers=layers).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"ValueAdapters: {name} must be a positive integer, got {value!r}")
        check_options(activation=activation)
        place = dict(device=device, dtype=dtype)
        self.in_features, self.out_features, self.rank, self.layers = in_features, out_features, rank, layers
        self.activation, self.scale, self.init_std, self.zero_init_up = activation, float(scale), init_std, zero_init_up
        self.down_weight = nn.Parameter(torch.empty(layers, rank, in_features, **place))
        self.up_weight = nn.Parameter(torch.empty(layers, out_features, rank, **place))
        self.down_bias = nn.Parameter(torch.empty(layers, rank, **place)) if bias else None
        self.up_bias = nn.Parameter(torch.empty(layers, out_features, **place)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        self.down_weight.normal_(0, self.init_std)
        self.up_weight.normal_(0, self.init_std)
        if self.zero_init_up:
            self.up_weight.zero_()
        for bias in (self.down_bias, self.up_bias):
            if bias is not None:
                bias.zero_()

    def forward(self, e, v):
        return functional.value_adapters(
            e,
            v,
            self.down_weight,
            self.down_bias,
            self.up_weight,
            self.up_bias,
            activation=self.activation,
            scale=self.scale,
        )

    def extra_repr(self):
        return f"{self.in_features}, {self.out_features}, rank={self.rank}, layers={self.layers}"


def _check_sizes(features, rank, heads, design):
    if design not in DESIGNS:
        raise ValueError(f"GatedAdapter: design must be one of {', '.join(DESIGNS)}, got {design!r}")
    for name, value in (("features", features), ("rank", rank), ("heads", heads)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"GatedAdapter: {name} must be a positive integer, got {value!r}")
    if "down" in design and rank % heads:
        raise ValueError(f"GatedAdapter: heads must divide rank for design={design!r}, got heads={heads}, rank={rank}")
    if "up" in design and features % heads:
        raise ValueError(
            f"GatedAdapter: heads must divide features for design={design!r}, got heads={heads}, features={features}"
        )
