"""``petx::mode_cores_fwd`` and ``_bwd`` by the emulated kernels, with the operators' own arguments."""

import ctypes

import torch

from tests.emulator.operations import addresses, integers, reals, workspace


def described(emulator, core, modes, threshold, gate, temperature, *more):
    """The call as ModeCoresParams has it: integers and ``more`` of them, reals, pointers."""
    each = threshold is not None and threshold.shape[0] > 1
    numbers = integers(core.dtype, modes.shape[0], core.shape[0], core.dim() == 1, gate, each, *more)
    named = {"core": core, "modes": modes, "threshold": threshold}
    pointers = [emulator.buffer(name, tensor) for name, tensor in named.items()]
    return numbers, reals(temperature), addresses(*pointers)


def forward(emulator, core, modes, threshold, gate, temperature):
    shape = (modes.shape[0], *(core.shape[1:] if core.dim() > 1 else core.shape))
    cores, address = emulator.result("cores", shape, core.dtype)
    call = described(emulator, core, modes, threshold, gate, temperature)
    emulator.call("mode_cores_fwd", *call, ctypes.c_void_p(address))
    return cores


def backward(emulator, dcores, core, modes, threshold, needs, narrow, gate, temperature):
    """Gradients of core, modes and threshold, empty where bit i of ``needs`` does not ask for them."""
    compute = torch.float64 if core.dtype == torch.float64 else torch.float32
    call = described(emulator, core, modes, threshold, gate, temperature, narrow)
    grads, pointers = [], [emulator.buffer("dcores", dcores)]
    for i, (name, tensor) in enumerate({"core": core, "modes": modes, "threshold": threshold}.items()):
        wanted = tensor is not None and needs >> i & 1
        dtype = core.dtype if narrow >> i & 1 else compute
        grad, address = emulator.result(f"d{name}", tensor.shape if wanted else (0,), dtype)
        grads.append(grad)
        pointers.append(address if wanted else None)
    call = (*call, addresses(*pointers))
    emulator.call("mode_cores_bwd", *call, workspace(emulator, "mode_cores_bwd_workspace", *call))
    if modes.shape[0] == 0:
        for grad in grads:
            grad.zero_()
    return tuple(grads)


IMPLEMENTATIONS = {"mode_cores_fwd": forward, "mode_cores_bwd": backward}
