"""``petx::gated_adapter_fwd`` and ``_bwd`` by the emulated kernels, with the operators' own arguments."""

import contextlib
import ctypes
import functools
import warnings

import torch

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # in the order of DType in kernels/types.h
TENSORS = (
    "h x down_weight down_bias up_weight up_bias gate_down_weight gate_down_bias gate_weight gate_bias norm_weight "
    "norm_bias mask seed"
).split()
LARGE, MIDDLE_X, SMALL = 1, 2, 4


def described(tensors, options):
    """The call's numbers as GatedAdapterParams has them: integers, reals."""
    length, granularity, heads, activation, gate_input, middle_y, placement, norm, residual, *reals = options
    h, x = tensors[:2]
    r_g = tensors[6].shape[0] if granularity == LARGE else 0
    sizes = [h.shape[0], length, h.shape[1], h.shape[1] if x is None else x.shape[1], tensors[2].shape[0], r_g, heads]
    choices = [granularity, activation, gate_input, middle_y, placement, norm, residual]
    return [DTYPES.index(h.dtype), *sizes, *choices], reals


def arguments(integers, reals, addresses):
    return (
        (ctypes.c_int64 * len(integers))(*map(int, integers)),
        (ctypes.c_double * len(reals))(*reals),
        (ctypes.c_void_p * len(addresses))(*addresses),
    )


def workspace_of(emulator, asked, *call):
    size = getattr(emulator.library, asked)
    size.restype = ctypes.c_int64
    return ctypes.c_void_p(emulator.result("workspace", (size(*call),), torch.uint8)[1])


def forward(emulator, *args):
    """(out, z, gate_z, token_gate, norm_stats)."""
    tensors, options = args[:14], args[14:]
    integers, reals = described(tensors, options)
    rows, _, d, _, r, r_g = integers[1:7]
    granularity, norm = integers[8], integers[13]
    dtype, compute = tensors[0].dtype, torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    addresses = [emulator.buffer(name, tensor) for name, tensor in zip(TENSORS, tensors, strict=True)]
    results = {
        "out": emulator.result("out", (rows, d), dtype),
        "z": emulator.result("z", (rows, r), dtype),
        "gate_z": emulator.result("gate_z", (rows if r_g else 0, r_g), dtype),
        "token_gate": emulator.result("token_gate", (rows if granularity in (MIDDLE_X, SMALL) else 0,), compute),
        "norm_stats": emulator.result("norm_stats", (rows if norm else 0, 2), compute),
    }
    addresses += [address for _, address in results.values()][1:]
    call = arguments(integers, reals, addresses)
    workspace = workspace_of(emulator, "gated_adapter_fwd_workspace", *call)
    emulator.call("gated_adapter_fwd", *call, ctypes.c_void_p(results["out"][1]), workspace)
    return tuple(tensor for tensor, _ in results.values())


def backward(emulator, dout, *args):
    """Gradients of h, x and the ten parameters, empty where bit i of ``needs`` does not ask for them."""
    tensors, saved, needs, options = args[:14], args[14:18], args[18], args[19:]
    integers, reals = described(tensors, options)
    dtype, compute = dout.dtype, torch.float64 if dout.dtype == torch.float64 else torch.float32
    named = [*zip(TENSORS, tensors, strict=True), *zip(("z", "gate_z", "token_gate", "norm_stats"), saved, strict=True)]
    addresses = [emulator.buffer(name, tensor) for name, tensor in named]
    grads, grad_addresses = [], [emulator.buffer("dout", dout)]
    for i, (name, tensor) in enumerate(zip(TENSORS[:12], tensors, strict=False)):
        wanted = tensor is not None and needs >> i & 1
        grad, address = emulator.result(f"d{name}", tensor.shape if wanted else (0,), dtype if i < 2 else compute)
        if dout.shape[0] == 0:
            grad.zero_()
        grads.append(grad)
        grad_addresses.append(address if wanted else None)
    call = arguments(integers, reals, addresses)
    gradients = (ctypes.c_void_p * 13)(*grad_addresses)
    workspace = workspace_of(emulator, "gated_adapter_bwd_workspace", *call, gradients)
    emulator.call("gated_adapter_bwd", *call, gradients, workspace)
    return tuple(grads)


@contextlib.contextmanager
def in_place_of_cpu_kernels(emulator):
    """The operators on CPU tensors are the emulated CUDA kernels: all above them stays as users call it."""
    library = torch.library.Library("petx", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for name, run in (("fwd", forward), ("bwd", backward)):
            library.impl(f"gated_adapter_{name}", functools.partial(run, emulator), "CPU", allow_override=True)
    try:
        yield emulator
    finally:
        library._destroy()
