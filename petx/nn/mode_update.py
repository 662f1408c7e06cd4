"""Drop-in layers for PETAL's mode approximation beside frozen projections (arXiv 2312.12458)."""

import torch
import torch.nn.functional as F
from torch import nn

from petx import functional
from petx.nn._arguments import checked_probability, checked_size, parameters_of
from petx.nn._modes import new_mode, reset_factors, reset_mode
from petx.nn.mode_cores import ModeCores

__all__ = ["ModeFactors", "ModeLinear", "ModeProjections"]


class ModeFactors(nn.Module):
    r"""The factors that layers share: ``u [R, d_in]``, ``v [d_out, R]`` and the core.

    Args:
        in_features, out_features, rank: d_in, d_out, R.
        core: ``"full"`` or ``"diagonal"``, and further options of :class:`petx.nn.ModeCores`; or a ModeCores to share.

    U starts as torch's Linear, U(±1/√d_in), and V at zero, so that an update is zero at first.
    """

    def __init__(self, in_features, out_features, rank, *, core="full", device=None, dtype=None, **options):
        super().__init__()
        checked_size("ModeFactors", in_features=in_features, out_features=out_features, rank=rank)
        place = dict(device=device, dtype=dtype)
        if isinstance(core, ModeCores) and core.rank != rank:
            raise ValueError(f"ModeFactors: the shared core has rank {core.rank}, wanted {rank}")
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.u = nn.Parameter(torch.empty(rank, in_features, **place))
        self.v = nn.Parameter(torch.empty(out_features, rank, **place))
        self.cores = core if isinstance(core, ModeCores) else ModeCores(rank, form=core, **place, **options)
        self.reset_parameters()

    def reset_parameters(self):
        reset_factors(self.u, [self.v])
        self.cores.reset_parameters()

    def extra_repr(self):
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class _Adapted(nn.Module):
    """What ModeLinear and ModeProjections have in common: factors, dropout and the call."""

    def _set_up(self, in_features, out_features, rank, factors, dropout, shared_mask, options, place):
        checked_probability(type(self).__name__, dropout=dropout)
        if factors is None:
            factors = ModeFactors(in_features, out_features, rank, **options, **place)
        elif options or (factors.in_features, factors.out_features, factors.rank) != (in_features, out_features, rank):
            got = f"{factors.in_features}, {factors.out_features}, {factors.rank}"
            raise ValueError(
                f"{type(self).__name__}: factors must be for in_features={in_features}, out_features={out_features}, "
                f"rank={rank}, and bring their core's options; got {got} and {sorted(options)}"
            )
        self.rank, self.dropout, self.shared_mask = rank, float(dropout), bool(shared_mask)
        self.factors = factors

    def _update(self, x, modes, bases):
        factors = self.factors
        u, v = parameters_of(factors, "u", "v")
        dropout = self.dropout if self.training else 0.0
        cores = factors.cores(modes)
        return functional.mode_update(x, u, v, cores, bases, dropout=dropout, shared_mask=self.shared_mask)


class ModeLinear(nn.Linear, _Adapted):
    r"""A frozen linear with PETAL's update, ``y = W x + b + V M(p)ᵀ drop(U x)``, ``M(p) = gate(C) ×₃ p``.

    Args:
        in_features, out_features, bias: as in :class:`torch.nn.Linear`, whose state loads with ``strict=False``:
            ``weight`` and ``bias`` have its names and do not require a gradient.
        rank: R.
        factors: a :class:`ModeFactors` to share with other layers; a new one by default.
        dropout: of U x, while training.
        options: ``core``, ``threshold``, ``per_rank``, ... of :class:`ModeFactors` for new factors.

    Equal to torch's Linear until ``factors.v`` leaves zero. Shape: ``[..., in_features]`` to ``[..., out_features]``.
    """

    def __init__(
        self,
        in_features,
        out_features,
        rank,
        bias=True,
        *,
        factors=None,
        dropout=0.0,
        device=None,
        dtype=None,
        **options,
    ):
        place = dict(device=device, dtype=dtype)
        checked_size("ModeLinear", in_features=in_features, out_features=out_features, rank=rank)
        super().__init__(in_features, out_features, bias, **place)
        self._set_up(in_features, out_features, rank, factors, dropout, False, options, place)
        self.mode = new_mode(rank, **place)
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.requires_grad_(False)

    @classmethod
    def from_linear(cls, linear, rank, **options):
        """A layer around the weight and bias of ``linear``, a :class:`torch.nn.Linear`, which are frozen by it."""
        place = dict(device=linear.weight.device, dtype=linear.weight.dtype)
        layer = cls(linear.in_features, linear.out_features, rank, linear.bias is not None, **place | options)
        layer.weight, layer.bias = linear.weight, linear.bias
        for parameter in (layer.weight, layer.bias):
            if parameter is not None:
                parameter.requires_grad_(False)
        return layer.train(linear.training)

    def reset_parameters(self):
        """The linear as torch does it; the mode vector, and the factors, shared or not, as in their classes."""
        super().reset_parameters()
        if hasattr(self, "mode"):
            reset_mode(self.mode)
            self.factors.reset_parameters()

    def forward(self, x):
        weight, bias, mode = parameters_of(self, "weight", "bias", "mode")
        (y,) = self._update(x, mode.unsqueeze(0), [F.linear(x, weight, bias)])
        return y

    @torch.no_grad()
    def merged_weight(self):
        """``W + V M(p)ᵀ U`` ``[out_features, in_features]``, the weight of a plain linear that computes the same."""
        cores = self.factors.cores(self.mode.unsqueeze(0))
        return functional.cp_reconstruct([self.weight], self.factors.u, self.factors.v, cores)[0]

    def extra_repr(self):
        return f"{super().extra_repr()}, rank={self.rank}, dropout={self.dropout}"


class ModeProjections(_Adapted):
    r"""Frozen projections of one input, adapted together: ``y_k = W_k x + b_k + V M(p_k)ᵀ drop_k(U x)``.

    U x is computed once, and one call makes all updates: an attention's query, key and value.

    Args:
        in_features, out_features, rank: sizes; all projections have the same.
        names: of the projections, which are submodules of type :class:`torch.nn.Linear`; at most 4.
        shared_mask: one dropout mask of U x for all, instead of one for each.
        bias, factors, dropout, options: as in :class:`ModeLinear`.

    Shape: ``[..., in_features]`` to a tuple of ``[..., out_features]``, one for every name.
    """

    def __init__(
        self,
        in_features,
        out_features,
        rank,
        names=("q_proj", "k_proj", "v_proj"),
        bias=True,
        *,
        factors=None,
        dropout=0.0,
        shared_mask=False,
        device=None,
        dtype=None,
        **options,
    ):
        super().__init__()
        checked_size("ModeProjections", in_features=in_features, out_features=out_features, rank=rank)
        taken = {"modes", "factors"} & set(names)
        if not 1 <= len(names) <= 4 or len(set(names)) < len(names) or taken:
            raise ValueError(
                "ModeProjections: names must be 1 to 4 different ones, not 'modes' or 'factors', got "
                + ", ".join(map(repr, names))
            )
        place = dict(device=device, dtype=dtype)
        self.in_features, self.out_features, self.names = in_features, out_features, tuple(names)
        for name in self.names:
            self.add_module(name, nn.Linear(in_features, out_features, bias, **place).requires_grad_(False))
        self._set_up(in_features, out_features, rank, factors, dropout, shared_mask, options, place)
        self.modes = nn.ParameterDict({name: new_mode(rank, **place) for name in self.names})

    def reset_parameters(self):
        for name in self.names:
            getattr(self, name).reset_parameters()
            reset_mode(self.modes[name])
        self.factors.reset_parameters()

    def forward(self, x):
        bases = [getattr(self, name)(x) for name in self.names]
        return self._update(x, torch.stack([self.modes[name] for name in self.names]), bases)

    def extra_repr(self):
        return f"rank={self.rank}, dropout={self.dropout}, shared_mask={self.shared_mask}"
