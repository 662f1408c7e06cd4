"""``petx::cp_reconstruct_fwd`` and ``_bwd`` by the emulated kernels, with the operators' own arguments."""

import torch

from tests.emulator.operations import addresses, integers, reals, workspace

FACTORS = ("u", "v", "cores", "threshold")


def described(emulator, like, count, factors, gate, temperature, scale, *more):
    """The call as CpReconstructParams has it: integers and ``more`` of them, reals, the factors' addresses."""
    cores, threshold = factors[2:]
    sizes = (count, *like.shape, cores.shape[1], cores.dim() == 2, gate, 0 if threshold is None else len(threshold))
    pointers = [emulator.buffer(name, tensor) for name, tensor in zip(FACTORS, factors, strict=True)]
    return integers(like.dtype, *sizes, *more), reals(temperature, scale), addresses(*pointers)


def forward(emulator, weights, *args):
    """The sides, which only a CPU keeps, and the K adapted weights."""
    call = described(emulator, weights[0], len(weights), args[:4], *args[4:-1])
    inputs = [emulator.buffer(f"weights[{k}]", weight) for k, weight in enumerate(weights)]
    results = [emulator.result(f"out[{k}]", weight.shape, weight.dtype) for k, weight in enumerate(weights)]
    scratch = workspace(emulator, "cp_reconstruct_fwd_workspace", *call)
    outputs = addresses(*(address for _, address in results))
    emulator.call("cp_reconstruct_fwd", *call, addresses(*inputs), outputs, scratch)
    d_out, d_in = weights[0].shape
    return [torch.empty(0, d_out, -(-d_in // 4), dtype=torch.uint8), *(tensor for tensor, _ in results)]


def backward(emulator, dout, *args):
    """Gradients of the factors, empty where bit i of ``needs`` does not ask for them."""
    factors, needs, narrow, options = args[:4], args[5], args[6], args[7:]
    call = described(emulator, dout[0], len(dout), factors, *options, narrow)
    inputs = [emulator.buffer(f"dout[{k}]", grad) for k, grad in enumerate(dout)]
    compute = torch.float64 if dout[0].dtype == torch.float64 else torch.float32
    grads, pointers = [], []
    for i, (name, tensor) in enumerate(zip(FACTORS, factors, strict=True)):
        wanted = tensor is not None and needs >> i & 1
        dtype = dout[0].dtype if narrow >> i & 1 else compute
        grad, address = emulator.result(f"d{name}", tensor.shape if wanted else (0,), dtype)
        if dout[0].numel() == 0:
            grad.zero_()
        grads.append(grad)
        pointers.append(address if wanted else None)
    call = (*call, addresses(*pointers))
    scratch = workspace(emulator, "cp_reconstruct_bwd_workspace", *call)
    emulator.call("cp_reconstruct_bwd", *call, addresses(*inputs), scratch)
    return tuple(grads)


IMPLEMENTATIONS = {"cp_reconstruct_fwd": forward, "cp_reconstruct_bwd": backward}
