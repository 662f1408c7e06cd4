"""Frozen projections of one input with PETAL's update in one call (arXiv 2312.12458)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from petx._checks import check_flag, check_size, refuse
from petx.functional._mode_update import MOST_MODES
from petx.nn._modes import new_mode, reset_mode
from petx.nn._parameters import Device, check_input, place_of
from petx.nn.mode_update.mode_factors import Adapted, ModeFactors

__all__ = ["ModeProjections"]


class ModeProjections(Adapted):
    r"""Frozen projections of one input, adapted together: ``y_k = W_k x + b_k + V M(p_k)ᵀ drop_k(U x)``
    (PETAL, arXiv 2312.12458, dynamic mode approximation).

    U x is computed once, and one call makes all updates: an attention's query, key and value.

    Args:
        in_features, out_features, rank: sizes; all projections have the same.
        names: of the projections, which are submodules of type :class:`torch.nn.Linear`; at most 4.
        shared_mask: one dropout mask of U x for all, instead of one for each.
        bias, factors, dropout, options: as in :class:`ModeLinear`.

    Shape: ``[..., in_features]`` to a tuple of ``[..., out_features]``, one for every name.

    Raises ValueError naming the argument, what came and what was wanted.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        names: Sequence[str] = ("q_proj", "k_proj", "v_proj"),
        bias: bool = True,
        *,
        factors: ModeFactors | None = None,
        dropout: float = 0.0,
        shared_mask: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_size("ModeProjections", in_features=in_features, out_features=out_features, rank=rank)
        check_flag("ModeProjections", bias=bias)
        self._check_names(names)
        place = place_of("ModeProjections", device, dtype)
        self.in_features, self.out_features, self.names = in_features, out_features, tuple(names)
        for name in self.names:
            self.add_module(name, nn.Linear(in_features, out_features, bias, **place).requires_grad_(False))
        self._set_up(in_features, out_features, rank, factors, dropout, shared_mask, options, place)
        self.modes = nn.ParameterDict({name: new_mode(rank, **place) for name in self.names})

    def _check_names(self, names: Any) -> None:
        """A module can have them: a list of attribute names that nothing else has."""
        fits = isinstance(names, Sequence) and not isinstance(names, str) and 1 <= len(names) <= MOST_MODES
        fits = fits and all(isinstance(name, str) and name.isidentifier() for name in names)
        fits = fits and len(set(names)) == len(names) and not {"modes", "factors"} & set(names)
        if not fits or any(hasattr(self, name) for name in names):
            wanted = f"1 to {MOST_MODES} different ones, free attribute names and not 'modes' or 'factors'"
            refuse("ModeProjections", "names", wanted, names)

    def reset_parameters(self) -> None:
        """The linears as torch does it, the mode vectors, and the factors, shared or not, as in their class."""
        for name in self.names:
            getattr(self, name).reset_parameters()
            reset_mode(self.modes[name])
        self.factors.reset_parameters()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x [..., in_features]`` gives a tuple of ``[..., out_features]``, one for every name."""
        check_input("ModeProjections", "x", x, self.in_features)
        bases = [getattr(self, name)(x) for name in self.names]
        return self._update(x, torch.stack([self.modes[name] for name in self.names]), bases)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, dropout={self.dropout}, shared_mask={self.shared_mask}"
