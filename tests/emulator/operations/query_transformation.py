"""``petx::query_transformation_fwd`` and ``_bwd`` by the emulated kernels, with the operators' own arguments."""

import ctypes
import math

import torch

from tests.emulator.operations import addresses, integers, reals, workspace


def laid(emulator, name, tensor):
    """The tensor's address, and the values from a sample to the next and from a row of it to the next; a copy's if its
    rows are not dense or not evenly apart, as the operator makes one."""
    if tensor is None or not tensor.numel():
        return None, 0, 0
    steps = [step for size, step in zip(tensor.shape[:-2], tensor.stride()[:-2], strict=True) if size > 1]
    sizes = [size for size in tensor.shape[:-2] if size > 1]
    even = all(step == steps[-1] * math.prod(sizes[i + 1 :]) for i, step in enumerate(steps))
    if not even or (tensor.shape[-1] > 1 and tensor.stride(-1) != 1):
        return laid(emulator, name, tensor.contiguous())
    reached = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    sample, row = steps[-1] if steps else 0, tensor.stride(-2) if tensor.dim() > 1 else 0
    return emulator.buffer(name, tensor.as_strided((reached,), (1,))), sample, row


def described(emulator, x, scale, shift, factor, name, other, *more):
    """The call as QueryTransformationParams has it: integers and ``more`` of them, reals, pointers; and that of the
    tensor ``other``, named ``name``."""
    length = x.shape[-2] if x.dim() > 1 else 1
    x_address, *x_steps = laid(emulator, "x", x)
    address, *steps = laid(emulator, name, other)
    numbers = integers(x.dtype, math.prod(x.shape[:-1]), length, x.shape[-1], *x_steps, *steps, *more)
    vectors = [emulator.buffer("scale", scale), emulator.buffer("shift", shift)]
    return numbers, reals(factor), [x_address, *vectors], address


def forward(emulator, x, scale, shift, to, factor):
    y, y_address = emulator.result("y", x.shape, x.dtype)
    *call, pointers, address = described(emulator, x, scale, shift, factor, "to", to)
    emulator.call("query_transformation_fwd", *call, addresses(*pointers, address), ctypes.c_void_p(y_address))
    return y


def backward(emulator, dout, x, scale, needs, narrow, factor):
    """Gradients of x, scale and shift, empty where bit i of ``needs`` does not ask for them."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    *call, pointers, address = described(emulator, x, scale, None, factor, "dout", dout, narrow)
    grads, made = [], []
    for i, (name, tensor) in enumerate({"x": x, "scale": scale, "shift": scale}.items()):
        wanted = needs >> i & 1
        dtype = x.dtype if (narrow | 1) >> i & 1 else compute
        grad, to = emulator.result(f"d{name}", tensor.shape if wanted else (0,), dtype)
        grads.append(grad)
        made.append(to if wanted else None)
    call = (*call, addresses(*pointers), addresses(address, *made))
    emulator.call("query_transformation_bwd", *call, workspace(emulator, "query_transformation_bwd_workspace", *call))
    if x.numel() == 0:
        for grad in grads:
            grad.zero_()
    return tuple(grads)


IMPLEMENTATIONS = {"query_transformation_fwd": forward, "query_transformation_bwd": backward}
