"""What one adapter holds once for the whole model: shared factors, experts, query transformations."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from petx import functional
from petx.errors import UserError
from petx.nn import ContextEnhancement, ExpertMixture, ModeCores, QueryTransformation
from petx.nn._modes import new_mode, reset_factors
from petx.tuners.petal.config import PetalConfig
from petx.tuners.petal.plan import Plan, Tower

__all__ = ["Factors", "PetalParts", "check_that_it_can_train", "new_parts"]


class Factors(nn.Module):
    """U ``[R, d_in]``, a V ``[d_out, R]`` for every output width that occurs, and the core, if it is not another's.

    In the explicit form the threshold Γ ``[1]`` is here, and not in the core.
    """

    def __init__(
        self,
        in_features: int,
        widths: Iterable[int],
        rank: int,
        config: PetalConfig,
        own_core: bool = True,
        **place: Any,
    ) -> None:
        super().__init__()
        self.rank = rank
        self.u = nn.Parameter(torch.empty(rank, in_features, **place))
        self.v = nn.ParameterDict()
        for width in widths:
            self.v[str(width)] = nn.Parameter(torch.empty(width, rank, **place))
        self.cores = None
        explicit = config.form == "explicit"
        self.gate, self.temperature = config.threshold if explicit else "none", config.temperature
        gamma = torch.full((1,), config.threshold_init, **place) if self.gate != "none" else None
        self.threshold = None if gamma is None else nn.Parameter(gamma)
        if own_core:
            self.cores = ModeCores(
                rank,
                form=config.core,
                threshold="none" if explicit else config.threshold,
                per_rank=config.threshold_per_rank,
                threshold_init=config.threshold_init,
                temperature=config.temperature,
                **place,
            )
        reset_factors(self.u, self.v.values())
        if config.init_output == "uniform":
            with torch.no_grad():
                for v in self.v.values():
                    v.uniform_(-1 / math.sqrt(rank), 1 / math.sqrt(rank))

    def written_out(self, weights: list[torch.Tensor], cores: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """W' ``[d_out, d_in]`` for each of ``weights``: W + gate(V M(p)ᵀ U)."""
        v = self.v[str(weights[0].shape[0])]
        return functional.cp_reconstruct(
            weights, self.u, v, cores, self.threshold, gate=self.gate, temperature=self.temperature
        )


class PetalParts(nn.Module):
    """One adapter's shared parts; it is saved once, the mode vectors are in the layers."""

    def __init__(self, plan: Plan, config: PetalConfig, **place: Any) -> None:
        super().__init__()
        self.dropout, self.shared_mask = config.dropout, config.shared_mask
        self.form = config.form
        self.expert_scope, self.mixed = config.expert_scope, dict(plan.mixed)
        sizes: dict[str, tuple[int, dict[int, None]]] = {}
        for group in plan.groups:
            sizes.setdefault(group.factors, (group.in_features, {}))[1][group.out_features] = None
        # Name of factors -> name of those whose core they use.
        shared = config.share_image_core and "text" in sizes
        self.core_of = {name: "text" if shared and name == "image" else name for name in sizes}
        self.factors = nn.ModuleDict(
            {
                name: Factors(width, outs, config.rank_of(name), config, self.core_of[name] == name, **place)
                for name, (width, outs) in sizes.items()
            }
        )
        self.experts = None
        if config.experts:
            assert plan.width is not None  # found with the place that experts need
            self.experts = ExpertMixture(
                plan.width,
                config.experts,
                config.expert_rank,
                gate=config.expert_gate,
                top_k=config.expert_top_k,
                activation=config.expert_activation,
                alpha=config.expert_alpha,
                beta=config.expert_beta,
                **place,
            )
        self.query_transform, self.cross_query_transform = nn.ModuleDict(), nn.ModuleDict()
        for tower in plan.towers.values():
            for wanted, into in (
                (config.query_transform, self.query_transform),
                (config.cross_query_transform, self.cross_query_transform),
            ):
                if wanted:
                    layers = [QueryTransformation(layer.width, **place) for layer in tower.layers]
                    into[tower.key] = nn.ModuleList(layers)
        self.context = ContextEnhancement(config.context, config.context_weight)

    def cores(self, factors: str, modes: torch.Tensor) -> torch.Tensor:
        """Cores of the mode vectors ``[n, R]`` with the core that ``factors`` (a name) use."""
        owner: Any = self.factors[self.core_of[factors]]
        return owner.cores(modes)

    def written_out(
        self, factors: str, weights: list[torch.Tensor], modes: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """The adapted ``weights``, alike in shape, with a mode vector ``[R]`` each, by the ``factors`` of that name."""
        own: Any = self.factors[factors]
        return own.written_out(weights, self.cores(factors, torch.stack(modes)))

    def transformation(self, tower: Tower, index: int, cross: bool = False) -> QueryTransformation | None:
        """The query transformation of a layer of ``tower`` (its description), or None."""
        held: Any = self.cross_query_transform if cross else self.query_transform
        return held[tower.key][index] if tower.key in held else None


def new_parts(plan: Plan, config: PetalConfig, **place: Any) -> tuple[PetalParts, dict[str, nn.Parameter]]:
    """The shared parts and the mode vectors (path of the linear -> ``[R]``) of a new adapter, nothing of it in place.

    Raises UserError if a part of it could never train.
    """
    parts = PetalParts(plan, config, **place)
    modes = {p: new_mode(config.rank_of(group.factors), **place) for group in plan.groups for p in group.paths}
    if config.init_modes != "xavier":
        with torch.no_grad():
            for mode in modes.values():
                mode.fill_(1.0 if config.init_modes == "ones" else 0.0)
    check_that_it_can_train(parts, plan, modes)
    return parts, modes


@torch.no_grad()
def check_that_it_can_train(parts: PetalParts, plan: Plan, modes: dict[str, nn.Parameter]) -> None:
    """Raise UserError if the gradient of every factor of an update is zero.

    The update V gate(C)(p) U x is a product, so a factor's gradient contains all others: with two of them at zero
    nothing moves, and a soft threshold above every entry of the core passes no gradient at all.
    """
    if any(parameter.is_meta for parameter in parts.parameters()):
        return
    for group in plan.groups:
        factors: Any = parts.factors[group.factors]
        owner: Any = parts.factors[parts.core_of[group.factors]]
        cores = owner.cores
        stacked = torch.stack([modes[path] for path in group.paths])
        gated = cores(torch.ones_like(stacked) if cores.form == "diagonal" else stacked.new_ones(1, factors.rank))
        cut_off = not gated.any() and bool(cores.core.any())
        zero = {
            "U": not factors.u.any(),
            "V": not factors.v[str(group.out_features)].any(),
            "the core": not cores.core.any() or cut_off,
            "the mode vectors": not stacked.any(),
        }
        named = [name for name, is_zero in zero.items() if is_zero]
        if len(named) > 1 or (cut_off and cores.gate == "soft"):
            why = "no gradient passes the soft threshold" if len(named) < 2 else "every gradient contains one of them"
            raise UserError(
                f"PETAL: the factors of {group.attention} could never train: {' and '.join(named)} are zero, and {why}"
            )
        if factors.gate == "soft":
            weights = [factors.u.new_zeros(group.out_features, group.in_features)] * len(group.paths)
            if not any(update.any() for update in factors.written_out(weights, cores(stacked))):
                raise UserError(
                    f"PETAL: the factors of {group.attention} could never train: no entry of the update is above "
                    f"threshold_init={float(factors.threshold):g}, and no gradient passes the soft threshold"
                )
