"""The factors of PETAL's mode approximation, and what the layers with its update have in common."""

from typing import Any

import torch
from torch import Tensor, nn

from petx import functional
from petx._checks import check_choice, check_flag, check_probability, check_size, refuse
from petx.nn._modes import reset_factors
from petx.nn._parameters import Device, parameters_of, place_of
from petx.nn.mode_cores import FORMS, ModeCores

__all__ = ["ModeFactors"]


class ModeFactors(nn.Module):
    r"""The factors that layers share: ``u [R, d_in]``, ``v [d_out, R]`` and the core (PETAL, arXiv 2312.12458, dynamic
    mode approximation).

    Args:
        in_features, out_features, rank: d_in, d_out, R.
        core: ``"full"`` or ``"diagonal"``, and further options of :class:`petx.nn.ModeCores`; or a ModeCores to share.

    U starts as torch's Linear, U(±1/√d_in), and V at zero, so that an update is zero at first.

    Raises ValueError naming the argument, what came and what was wanted.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        core: str | ModeCores = "full",
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_size("ModeFactors", in_features=in_features, out_features=out_features, rank=rank)
        place = place_of("ModeFactors", device, dtype)
        if not isinstance(core, ModeCores):
            check_choice("ModeFactors", "core", core, FORMS)
        elif options:
            raise ValueError(f"ModeFactors: a shared core brings its own options, got {', '.join(sorted(options))}")
        elif core.rank != rank:
            raise ValueError(f"ModeFactors: the shared core has rank {core.rank}, wanted {rank}")
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.u = nn.Parameter(torch.empty(rank, in_features, **place))
        self.v = nn.Parameter(torch.empty(out_features, rank, **place))
        self.cores = core if isinstance(core, ModeCores) else ModeCores(rank, form=core, **place, **options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """U(±1/√d_in) for U, zero for V; the core as in its class."""
        reset_factors(self.u, [self.v])
        self.cores.reset_parameters()

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class Adapted(nn.Module):
    """What ModeLinear and ModeProjections have in common: factors, dropout and the call."""

    training: bool

    def _set_up(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        factors: ModeFactors | None,
        dropout: float,
        shared_mask: bool,
        options: dict[str, Any],
        place: dict[str, Any],
    ) -> None:
        owner = type(self).__name__
        check_probability(owner, dropout=dropout)
        check_flag(owner, shared_mask=shared_mask)
        if factors is not None and not isinstance(factors, ModeFactors):
            refuse(owner, "factors", "a ModeFactors or None", factors)
        if factors is None:
            factors = ModeFactors(in_features, out_features, rank, **options, **place)
        elif options or (factors.in_features, factors.out_features, factors.rank) != (in_features, out_features, rank):
            got = f"{factors.in_features}, {factors.out_features}, {factors.rank}"
            raise ValueError(
                f"{owner}: factors must be for in_features={in_features}, out_features={out_features}, "
                f"rank={rank}, and bring their core's options; got {got} and {sorted(options)}"
            )
        self.rank, self.dropout, self.shared_mask = rank, float(dropout), bool(shared_mask)
        self.factors = factors

    def _update(self, x: Tensor, modes: Tensor, bases: list[Tensor]) -> tuple[Tensor, ...]:
        factors = self.factors
        u, v = parameters_of(factors, "u", "v")
        dropout = self.dropout if self.training else 0.0
        cores = factors.cores(modes)
        return functional.mode_update(x, u, v, cores, bases, dropout=dropout, shared_mask=self.shared_mask)
