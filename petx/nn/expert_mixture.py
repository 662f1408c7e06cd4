"""PETAL's mixture of instruction experts as a layer (arXiv 2312.12458)."""

import torch
from torch import Tensor, nn

from petx._checks import check_choice, check_finite, check_flag, check_not_negative, check_size, is_integer
from petx.functional._expert_mixture import ACTIVATIONS, ARGUMENTS, GATES, mixture
from petx.nn._parameters import Device, parameters_of, place_of

__all__ = ["ExpertMixture"]

PARAMETERS = tuple(ARGUMENTS[1:])


class ExpertMixture(nn.Module):
    r"""``y = α x + β Σ_k g_k E_k(x)``, K bottleneck experts ``E_k(x) = B_k act(A_k x + a_k) + b_k`` (PETAL, arXiv
    2312.12458, the adaptive instruction mixture of experts).

    Args:
        features: width d. experts: K. rank: bottleneck of every expert.
        gate: ``"uniform"`` (1 / K, the released code), ``"token"`` or ``"sample"`` (the paper's gating network: a
            softmax per token, or of the mean over a sample's tokens).
        top_k: experts that a gating network keeps; None for all.
        activation: None (the released code), ``"relu"``, ``"gelu"`` or ``"gelu_tanh"``.
        alpha, beta: weights of the input and of the experts.
        bias: in the experts and the gating network.
        init_std: of the experts' weights, N(0, ``init_std``²), with biases at zero. The gating network starts at zero,
            which is the uniform mean.

    With ``beta=0`` and ``alpha=1`` it is the identity.
    Shape: ``x [..., L, d]``, masks ``[..., L]`` (see :func:`petx.functional.expert_mixture`), gives ``[..., L, d]``.
    Any floating dtype, x's; parameters may be of another, and their gradients come back in it.

    Raises ValueError naming the argument, what came and what was wanted.
    """

    down_weight: nn.Parameter
    down_bias: nn.Parameter | None
    up_weight: nn.Parameter
    up_bias: nn.Parameter | None
    gate_weight: nn.Parameter | None
    gate_bias: nn.Parameter | None

    def __init__(
        self,
        features: int,
        experts: int = 6,
        rank: int = 64,
        *,
        gate: str = "uniform",
        top_k: int | None = None,
        activation: str | None = None,
        alpha: float = 0.6,
        beta: float = 0.4,
        bias: bool = True,
        init_std: float = 0.02,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("ExpertMixture", features=features, experts=experts, rank=rank)
        check_choice("ExpertMixture", "gate", gate, GATES)
        check_choice("ExpertMixture", "activation", activation, ACTIVATIONS)
        check_finite("ExpertMixture", alpha=alpha, beta=beta)
        check_flag("ExpertMixture", bias=bias)
        check_not_negative("ExpertMixture", init_std=init_std)
        if top_k is not None and (gate == "uniform" or not is_integer(top_k) or not 1 <= top_k <= experts):
            raise ValueError(
                f"ExpertMixture: top_k must be from 1 to experts = {experts} and needs a gate that is not 'uniform', "
                f"got {top_k!r} with gate={gate!r}"
            )
        self.features, self.experts, self.rank, self.gate, self.top_k = features, experts, rank, gate, top_k
        self.activation, self.alpha, self.beta, self.init_std = activation, float(alpha), float(beta), init_std
        place = place_of("ExpertMixture", device, dtype)

        def parameter(name: str, *shape: int, wanted: bool = True) -> None:
            self.register_parameter(name, nn.Parameter(torch.empty(*shape, **place)) if wanted else None)

        parameter("down_weight", experts * rank, features)
        parameter("down_bias", experts * rank, wanted=bias)
        parameter("up_weight", features, experts * rank)
        parameter("up_bias", experts, features, wanted=bias)
        parameter("gate_weight", experts, features, wanted=gate != "uniform")
        parameter("gate_bias", experts, wanted=bias and gate != "uniform")
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for weight in (self.down_weight, self.up_weight):
            weight.normal_(0, self.init_std)
        for zero in (self.down_bias, self.up_bias, self.gate_weight, self.gate_bias):
            if zero is not None:
                zero.zero_()

    def forward(self, x: Tensor, scope_mask: Tensor | None = None, pool_mask: Tensor | None = None) -> Tensor:
        """``x [..., L, d]`` gives ``[..., L, d]``.

        ``scope_mask [..., L]`` is non-zero if a token is mixed, ``pool_mask [..., L]`` if it counts in the mean of the
        gate ``"sample"``; other gates do not look at it.
        """
        return mixture(
            x,
            parameters_of(self, *PARAMETERS),
            (scope_mask, pool_mask if self.gate == "sample" else None),
            self.experts,
            self.gate,
            self.top_k,
            self.activation,
            self.alpha,
            self.beta,
        )

    def extra_repr(self) -> str:
        shown = f"features={self.features}, experts={self.experts}, rank={self.rank}, gate={self.gate!r}"
        shown += f", alpha={self.alpha}, beta={self.beta}"
        if self.top_k is not None:
            shown += f", top_k={self.top_k}"
        return shown + (f", activation={self.activation!r}" if self.activation else "")
