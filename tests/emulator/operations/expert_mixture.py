"""``petx::expert_mixture_fwd`` and ``_bwd`` by the emulated kernels, with the operators' own arguments."""

import ctypes

import torch

from tests.emulator.operations import addresses, integers, reals, workspace

TENSORS = "x down_weight down_bias up_weight up_bias gate_weight gate_bias scope pool".split()
UNIFORM, TOKEN, SAMPLE = range(3)


def described(tensors, options, *more):
    """The call's numbers as ExpertMixtureParams has them: integers and ``more`` of them, reals."""
    experts, gate, top_k, activation, *numbers = options
    x, stacked = tensors[0], tensors[1].shape[0]
    sizes = [x.shape[:-1].numel(), *x.shape[-2:], stacked, experts, top_k]
    return integers(tensors[0].dtype, *sizes, gate, activation, *more), reals(*numbers)


def path(emulator, rows, stacked):
    """Which path a call of these shapes takes."""
    return (
        "hybrid" if emulator.library.expert_mixture_hybrid(ctypes.c_int64(rows), ctypes.c_int64(stacked)) else "fused"
    )


def forward(emulator, *args):
    """(out, u, gates)."""
    tensors, options = args[:9], args[9:]
    sizes, numbers = described(tensors, options)
    experts, gate = options[:2]
    rows, d, dtype = tensors[0].shape[:-1].numel(), tensors[0].shape[-1], tensors[0].dtype
    saved_rows = rows if d else 0
    samples = tensors[0].shape[:-2].numel() if saved_rows else 0
    gate_rows = {UNIFORM: 0, TOKEN: saved_rows, SAMPLE: samples}[gate]
    pointers = [emulator.buffer(name, tensor) for name, tensor in zip(TENSORS, tensors, strict=True)]
    out, out_address = emulator.result("out", tensors[0].shape, dtype)
    u, u_address = emulator.result("u", (saved_rows, tensors[1].shape[0]), dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    gates, gates_address = emulator.result("gates", (gate_rows, experts), compute)
    call = (sizes, numbers, addresses(*pointers, u_address, gates_address))
    scratch = workspace(emulator, "expert_mixture_fwd_workspace", *call)
    emulator.call("expert_mixture_fwd", *call, ctypes.c_void_p(out_address), scratch)
    return out, u, gates


def backward(emulator, dout, *args):
    """Gradients of x and the six parameters, empty where bit i of ``needs`` does not ask for them."""
    tensors, saved, needs, narrow, options = args[:9], args[9:11], args[11], args[12], args[13:]
    sizes, numbers = described(tensors, options, narrow)
    dtype, compute = dout.dtype, torch.float64 if dout.dtype == torch.float64 else torch.float32
    named = [*zip(TENSORS, tensors, strict=True), *zip(("u", "gates"), saved, strict=True)]
    pointers = [emulator.buffer(name, tensor) for name, tensor in named]
    grads, grad_addresses = [], [emulator.buffer("dout", dout)]
    for i, (name, tensor) in enumerate(zip(TENSORS[:7], tensors, strict=False)):
        wanted = tensor is not None and needs >> i & 1
        grad, address = emulator.result(
            f"d{name}", tensor.shape if wanted else (0,), dtype if (narrow | 1) >> i & 1 else compute
        )
        if dout.numel() == 0:
            grad.zero_()
        grads.append(grad)
        grad_addresses.append(address if wanted else None)
    call = (sizes, numbers, addresses(*pointers), addresses(*grad_addresses))
    emulator.call("expert_mixture_bwd", *call, workspace(emulator, "expert_mixture_bwd_workspace", *call))
    return tuple(grads)


IMPLEMENTATIONS = {"expert_mixture_fwd": forward, "expert_mixture_bwd": backward}
