"""PETAL's learnable threshold."""

import torch
import torch.nn.functional as F

__all__ = ["threshold_gate"]


def threshold_gate(
    values: torch.Tensor, threshold: torch.Tensor | None, gate: str, temperature: float = 1.0
) -> torch.Tensor:
    """PETAL's learnable threshold Γ on the entries of ``values``, to which ``threshold`` broadcasts.

    ``soft`` is sign(c) max(|c| - t, 0), ``sigmoid`` c σ((|c| - t) / temperature), ``hard`` c if |c| > t else 0, whose
    gradient is passed straight through to c and is the soft gate's to t.
    """
    if gate == "none":
        return values
    assert threshold is not None
    if gate == "sigmoid":
        return values * torch.sigmoid((values.abs() - threshold) / temperature)
    soft = torch.sign(values) * F.relu(values.abs() - threshold)
    if gate == "soft":
        return soft
    kept = (values.abs() > threshold).to(values.dtype)
    through = values - torch.sign(values) * kept * threshold  # its gradients are the ones wanted
    return through + (values * kept - through).detach()
