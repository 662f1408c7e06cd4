"""How results are compared, here and in every test of an operation: the error against float64, beside torch's own."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from petx.certify.cases.case import Case, Device, Results, Tensors

Found = dict[str, Any]  # name of a result or argument -> tensor, or None without gradient


def outputs(result: Results) -> tuple[torch.Tensor, ...]:
    """An operation's result as a tuple of tensors."""
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def weights_of(results: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Random gradients for ``results``, the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, y.dtype) for y in results]


def outputs_and_grads(call: Callable[[Tensors], Results], tensors: Tensors) -> Found:
    """Name -> result of one forward and backward of ``call(tensors)``; None for an argument without gradient."""
    results = outputs(call(tensors))
    leaves = {name: t for name, t in tensors.items() if t.requires_grad}
    grads = torch.autograd.grad(results, list(leaves.values()), weights_of(results), allow_unused=True)
    names = ["out"] if len(results) == 1 else [f"out {k}" for k in range(len(results))]
    return dict(zip(names, (y.detach() for y in results), strict=True)) | dict(zip(leaves, grads, strict=True))


def exact(case: Case, tensors: Tensors) -> Found:
    """Results of the reference in float64 for ``tensors``, which may be of any dtype."""
    wide = {name: t.detach().double().requires_grad_(t.requires_grad) for name, t in tensors.items()}
    return outputs_and_grads(case.expected, wide)


def relative(value: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm of what was wanted."""
    return ((value.double() - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()


# Below a few units in the last place, which of two results is closer is chance.
FLOOR = {torch.float64: 1e-13, torch.float32: 8 * 2.0**-23, torch.bfloat16: 4 * 2.0**-7, torch.float16: 4 * 2.0**-10}


def judged(got: Found, case: Case, tensors: Tensors) -> tuple[str | None, dict[str, Any] | None]:
    """(what is wrong or None, the result nearest to its bound) of the results ``got`` for ``tensors``.

    Wrong is an error against float64 above twice torch's own in the same dtype and above the dtype's resolution, a
    dtype, a shape, a value that is not finite; an error just above the bound is judged over several draws of the inputs
    (:func:`over_draws`). The second is ``{"name", "error", "bound"}``, or None without results.
    """
    want, own = exact(case, tensors), outputs_and_grads(case.expected, tensors)
    worst: dict[str, Any] | None = None
    for name, value in got.items():
        if want[name] is None:  # an argument that this case does not read
            if value is not None and value.any():
                return f"{name} should have no gradient", worst
            continue
        dtype = case.result_dtype(tensors) if name.startswith("out") else tensors[name].dtype
        if value is None or value.dtype != dtype or value.shape != want[name].shape:
            got_kind = None if value is None else (value.dtype, list(value.shape))
            return f"{name}: {got_kind}, not {(dtype, list(want[name].shape))}", worst
        if not torch.isfinite(value).all():
            return f"{name} is not finite", worst
        error, torch_error = relative(value, want[name]), relative(own[name], want[name])
        bound = max(2 * torch_error, FLOOR[value.dtype])
        if bound < error <= bound * (8 if value.numel() <= FEW_VALUES else 2):
            error, torch_error = over_draws(case, name, value.dtype, value.device)
            bound = max(2 * torch_error, FLOOR[value.dtype])
        if worst is None or error / bound > worst["error"] / worst["bound"]:
            worst = {"name": name, "error": error, "bound": bound}
        if error > bound:
            return f"{name}: error {error:.2e}, torch's own {torch_error:.2e}", worst
    return None, worst


def wrong(got: Found, case: Case, tensors: Tensors) -> str | None:
    """What is wrong with the results ``got`` for ``tensors``, or None; :func:`judged` says what wrong is."""
    return judged(got, case, tensors)[0]


# In one draw of the inputs torch's own error may be small by luck, the more so for the fewer values. A result near its
# bound is therefore held to it over several draws. It was found where nvcc contracts products and sums into one
# instruction: the three values of gate_bias's gradient, in expert_mixture's few-rows in float32, were over the bound of
# one draw, though no operation in them rounds more than torch's. The bound was wrong, not the kernel.
FEW_VALUES, DRAWS = 8, 16


def over_draws(case: Case, name: str, dtype: torch.dtype, device: Device) -> tuple[float, float]:
    """Relative errors of ``name``, the kernel's and torch's, over all of :data:`DRAWS` draws of the inputs."""
    values = []
    for seed in range(1, DRAWS + 1):
        tensors = case.inputs(dtype, seed=seed, device=device)
        results = exact(case, tensors), outputs_and_grads(case.run, tensors), outputs_and_grads(case.expected, tensors)
        values.append([result[name].double().flatten() for result in results])
    want, got, own = (torch.cat(several) for several in zip(*values, strict=True))
    return relative(got, want), relative(own, want)
