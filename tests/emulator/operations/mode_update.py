"""``petx::mode_update_fwd`` and ``_bwd`` by the emulated kernels, with the operators' own arguments."""

import math

import torch

from tests.emulator.operations import addresses, integers, reals, workspace

MOST = 4


def described(emulator, x, u, v, cores, seed, hidden, dropout, shared_mask, *more):
    """The call as ModeUpdateParams has it: integers and ``more`` of them, reals, pointers."""
    sizes = [math.prod(x.shape[:-1]), x.shape[-1], v.shape[0], cores.shape[1], cores.shape[0]]
    named = {"x": x, "u": u, "v": v, "cores": cores, "seed": seed}
    pointers = [emulator.buffer(name, tensor) for name, tensor in named.items()]
    if u is None:
        hidden, pointers[0] = pointers[0], None
    numbers = integers(x.dtype, *sizes, cores.dim() == 2, shared_mask, *more)
    return numbers, reals(dropout), addresses(*pointers, hidden)


def padded(pointers):
    return [*pointers, *[None] * (MOST - len(pointers))]


def laid(emulator, bases, width):
    """Addresses of the bases, and the values between two of their rows: they may lie side by side in one tensor."""
    if all(base.is_contiguous() for base in bases):
        return [emulator.buffer(f"base {k}", base) for k, base in enumerate(bases)], width
    stride, first = bases[0].stride(-2), bases[0]
    begin = emulator.buffer("bases", first.as_strided((first.numel() // width, stride), (stride, 1)))
    return [begin + base.data_ptr() - first.data_ptr() for base in bases], stride


def forward(emulator, x, u, v, cores, bases, seed, dropout, shared_mask):
    """[h, y_0, ..., y_(K-1)]."""
    rows, count = math.prod(x.shape[:-1]), cores.shape[0]
    h, h_address = emulator.result("h", (0 if u is None else rows, cores.shape[1]), x.dtype)
    base_addresses, stride = laid(emulator, bases, v.shape[0])
    call = described(emulator, x, u, v, cores, seed, h_address, dropout, shared_mask, stride)
    results = [emulator.result(f"y{k}", (*x.shape[:-1], v.shape[0]), x.dtype) for k in range(count)]
    pointers = addresses(*padded(base_addresses), *padded([address for _, address in results]))
    emulator.call("mode_update_fwd", *call, pointers, workspace(emulator, "mode_update_fwd_workspace", *call))
    return [h, *(y for y, _ in results)]


def backward(emulator, douts, used, x, u, v, cores, seed, h, needs, narrow, dropout, shared_mask):
    """Gradients of x, u, v and the cores, empty where bit i of ``needs`` does not ask for them."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    hidden = None if u is None else emulator.buffer("h", h)
    call = described(emulator, x, u, v, cores, seed, hidden, dropout, shared_mask, narrow)
    given = iter(douts)
    dy = padded([emulator.buffer(f"dy{k}", next(given)) if used >> k & 1 else None for k in range(cores.shape[0])])
    grads, pointers = [], []
    for i, (name, tensor) in enumerate({"x": x, "u": u, "v": v, "cores": cores}.items()):
        wanted = tensor is not None and needs >> i & 1
        dtype = x.dtype if (narrow | 1) >> i & 1 else compute
        grad, address = emulator.result(f"d{name}", tensor.shape if wanted else (0,), dtype)
        grads.append(grad)
        pointers.append(address if wanted else None)
    call = (*call, addresses(*dy, *pointers))
    emulator.call("mode_update_bwd", *call, workspace(emulator, "mode_update_bwd_workspace", *call))
    if x.numel() == 0:
        for grad in grads:
            grad.zero_()
    if needs & 8:
        for k in range(cores.shape[0]):
            if not used >> k & 1:
                grads[3][k].zero_()
    return tuple(grads)


IMPLEMENTATIONS = {"mode_update_fwd": forward, "mode_update_bwd": backward}
