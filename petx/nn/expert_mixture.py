"""PETAL's mixture of instruction experts as a layer (arXiv 2312.12458)."""

import torch
from torch import nn

from petx.functional.expert_mixture import ACTIVATIONS, ARGUMENTS, GATES, mixture
from petx.nn._arguments import checked_option, checked_size, parameters_of

__all__ = ["ExpertMixture"]

PARAMETERS = tuple(ARGUMENTS[1:])


class ExpertMixture(nn.Module):
    r"""``y = α x + β Σ_k g_k E_k(x)``, K bottleneck experts ``E_k(x) = B_k act(A_k x + a_k) + b_k``.

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
    """

    def __init__(
        self,
        features,
        experts=6,
        rank=64,
        *,
        gate="uniform",
        top_k=None,
        activation=None,
        alpha=0.6,
        beta=0.4,
        bias=True,
        init_std=0.02,
        device=None,
        dtype=None,
    ):
        super().__init__()
        checked_size("ExpertMixture", features=features, experts=experts, rank=rank)
        checked_option("ExpertMixture", "gate", gate, GATES)
        checked_option("ExpertMixture", "activation", activation, ACTIVATIONS)
        if top_k is not None and (gate == "uniform" or not isinstance(top_k, int) or not 1 <= top_k <= experts):
            raise ValueError(
                f"ExpertMixture: top_k must be from 1 to experts = {experts} and needs a gate that is not 'uniform', "
                f"got {top_k!r} with gate={gate!r}"
            )
        self.features, self.experts, self.rank, self.gate, self.top_k = features, experts, rank, gate, top_k
        self.activation, self.alpha, self.beta, self.init_std = activation, float(alpha), float(beta), init_std
        place = dict(device=device, dtype=dtype)

        def parameter(name, *shape, wanted=True):
            self.register_parameter(name, nn.Parameter(torch.empty(*shape, **place)) if wanted else None)

        parameter("down_weight", experts * rank, features)
        parameter("down_bias", experts * rank, wanted=bias)
        parameter("up_weight", features, experts * rank)
        parameter("up_bias", experts, features, wanted=bias)
        parameter("gate_weight", experts, features, wanted=gate != "uniform")
        parameter("gate_bias", experts, wanted=bias and gate != "uniform")
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        for weight in (self.down_weight, self.up_weight):
            weight.normal_(0, self.init_std)
        for zero in (self.down_bias, self.up_bias, self.gate_weight, self.gate_bias):
            if zero is not None:
                zero.zero_()

    def forward(self, x, scope_mask=None, pool_mask=None):
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

    def extra_repr(self):
        shown = f"features={self.features}, experts={self.experts}, rank={self.rank}, gate={self.gate!r}"
        shown += f", alpha={self.alpha}, beta={self.beta}"
        if self.top_k is not None:
            shown += f", top_k={self.top_k}"
        return shown + (f", activation={self.activation!r}" if self.activation else "")
