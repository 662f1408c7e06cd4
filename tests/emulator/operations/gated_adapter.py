"""``petx::gated_adapter_fwd`` and ``_bwd`` by the emulated kernels, with the operators' own arguments."""

import ctypes

import torch

from tests.emulator.operations import addresses, integers, reals, workspace

TENSORS = (
    "h x down_weight down_bias up_weight up_bias gate_down_weight gate_down_bias gate_weight gate_bias norm_weight "
    "norm_bias skip mask seed"
).split()
LARGE, MIDDLE_X, SMALL = 1, 2, 4


def described(tensors, options, *more):
    """The call's numbers as GatedAdapterParams has them: integers and ``more`` of them, reals."""
    granularity, heads, activation, gate_input, middle_y, placement, norm, residual, *numbers = options
    h, x = tensors[:2]
    r_g = tensors[6].shape[0] if granularity == LARGE else 0
    d_x = h.shape[-1] if x is None else x.shape[-1]
    sizes = [h.shape[:-1].numel(), h.shape[-2], h.shape[-1], d_x, tensors[2].shape[0], r_g, heads]
    choices = [granularity, activation, gate_input, middle_y, placement, norm, residual]
    return integers(h.dtype, *sizes, *choices, *more), reals(*numbers)


def forward(emulator, *args):
    """(out, z, gate_z, token_gate, norm_stats), and what only a CPU keeps: up_product, gate_product."""
    tensors, options = args[:15], args[15:-1]
    sizes, numbers = described(tensors, options)
    rows, r, r_g = sizes[1], *sizes[5:7]
    granularity, norm = sizes[8], sizes[13]
    dtype, compute = tensors[0].dtype, torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    pointers = [emulator.buffer(name, tensor) for name, tensor in zip(TENSORS, tensors, strict=True)]
    results = {
        "out": emulator.result("out", tensors[0].shape, dtype if tensors[12] is None else compute),
        "z": emulator.result("z", (rows, r), dtype),
        "gate_z": emulator.result("gate_z", (rows if r_g else 0, r_g), dtype),
        "token_gate": emulator.result("token_gate", (rows if granularity in (MIDDLE_X, SMALL) else 0,), compute),
        "norm_stats": emulator.result("norm_stats", (rows if norm else 0, 2), compute),
    }
    pointers += [address for _, address in results.values()][1:]
    call = (sizes, numbers, addresses(*pointers))
    scratch = workspace(emulator, "gated_adapter_fwd_workspace", *call)
    emulator.call("gated_adapter_fwd", *call, ctypes.c_void_p(results["out"][1]), scratch)
    none = [torch.empty(0, tensors[0].shape[-1], dtype=dtype) for _ in range(2)]
    return (*(tensor for tensor, _ in results.values()), *none)


def backward(emulator, dout, *args):
    """Gradients of h, x, the ten parameters and skip, empty where bit i of ``needs`` does not ask for them."""
    tensors, saved, needs, narrow, options = args[:15], args[15:19], args[21], args[22], args[23:]
    sizes, numbers = described(tensors, options, narrow)
    dtype, compute = tensors[0].dtype, torch.float64 if dout.dtype == torch.float64 else torch.float32
    named = [*zip(TENSORS, tensors, strict=True), *zip(("z", "gate_z", "token_gate", "norm_stats"), saved, strict=True)]
    pointers = [emulator.buffer(name, tensor) for name, tensor in named]
    grads, grad_addresses = [], [emulator.buffer("dout", dout)]
    for i, (name, tensor) in enumerate(zip(TENSORS[:13], tensors, strict=False)):
        wanted = tensor is not None and needs >> i & 1
        grad, address = emulator.result(
            f"d{name}", tensor.shape if wanted else (0,), dtype if (narrow | 3) >> i & 1 else compute
        )
        if dout.shape[:-1].numel() == 0:
            grad.zero_()
        grads.append(grad)
        grad_addresses.append(address if wanted else None)
    call = (sizes, numbers, addresses(*pointers), addresses(*grad_addresses))
    emulator.call("gated_adapter_bwd", *call, workspace(emulator, "gated_adapter_bwd_workspace", *call))
    return tuple(grads)


IMPLEMENTATIONS = {"gated_adapter_fwd": forward, "gated_adapter_bwd": backward}
