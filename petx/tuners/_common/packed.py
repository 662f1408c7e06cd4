"""What a quantising library's linears do at run time that would take the gradients from an adapter."""

from typing import Any

from torch import nn

from petx.errors import UserError

__all__ = ["keep_differentiable"]

# bitsandbytes' Linear4bit on a CPU with AVX512-BF16: its first pass without gradients in evaluation mode repacks the
# weight for good, for a product that has no derivative. Later passes then train nothing behind it, and nothing says so.
REPACKS, REPACKED = "support_avx512bf16_for_cpu", "packing_format_for_cpu"


def keep_differentiable(method: str, model: nn.Module) -> None:
    """Keep every 4-bit linear of ``model`` in the form through which gradients pass.

    Raises UserError, with nothing changed, if one has left it already.
    """
    linears: dict[str, Any] = {path: module for path, module in model.named_modules() if hasattr(module, REPACKS)}
    for path, linear in linears.items():
        if getattr(getattr(linear.weight, "quant_state", None), REPACKED, False):
            raise UserError(
                f"{method}: bitsandbytes has repacked {path} for inference on this CPU, and no gradient passes it any "
                "more: load the model again, and add the adapter before a first pass in evaluation mode"
            )
    for linear in linears.values():
        setattr(linear, REPACKS, False)
