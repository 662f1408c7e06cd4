"""AdamW as transformers 4.2.1 computes it, which VL-PET's released code trains with."""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["ReleasedAdamW"]


class ReleasedAdamW(torch.optim.Optimizer):
    r"""AdamW whose epsilon is added before the bias correction, and whose decay comes after the step.

    With the usual moments m and v of the gradient:

    .. math:: p \leftarrow p - \eta \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{m}{\sqrt{v} + \epsilon}, \qquad
        p \leftarrow p - \eta \lambda p

    torch's adds :math:`\epsilon \sqrt{1 - \beta_2^t}` to the root instead, and decays first. Sums are element-wise, so
    that the same gradients give the same bits.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        step, gradient = state["step"].item(), parameter.grad
        assert gradient is not None
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        size = group["lr"] * (1 - second**step) ** 0.5 / (1 - first**step)
        parameter.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-size)
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
