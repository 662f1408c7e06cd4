"""The dropout mask of every operation, from one counter-based generator."""

import math

import torch

__all__ = ["dropout_mask", "philox_uniform"]

PHILOX_ROUNDS = 7
_PHILOX_M0, _PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
_PHILOX_W0, _PHILOX_W1 = 0x9E3779B9, 0xBB67AE85


def philox_uniform(seed: torch.Tensor | int, count: int, device: torch.device | str | None = None) -> torch.Tensor:
    """24-bit integers from Philox4x32 with 7 rounds (Salmon et al., SC'11), element i from counter i // 4, word i % 4.

    ``seed`` is an int64 tensor of one element (the 64-bit key) or an int; returns int64 ``[count]`` in [0, 2**24).
    """
    seed = torch.as_tensor(seed, dtype=torch.int64, device=device).reshape(())
    counter = torch.arange((count + 3) // 4, dtype=torch.int64, device=seed.device)
    mask = 0xFFFFFFFF
    c0, c1 = counter & mask, counter >> 32
    c2 = c3 = torch.zeros_like(counter)
    k0, k1 = seed & mask, (seed >> 32) & mask
    for _ in range(PHILOX_ROUNDS):
        hi0, lo0 = _mul_hi_lo(c0, _PHILOX_M0)
        hi1, lo1 = _mul_hi_lo(c2, _PHILOX_M1)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _PHILOX_W0) & mask, (k1 + _PHILOX_W1) & mask
    return torch.stack([c0, c1, c2, c3], dim=1).reshape(-1)[:count] >> 8


def _mul_hi_lo(a: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a 32 x 32-bit product, in int64 without overflow."""
    b_hi, b_lo = b >> 16, b & 0xFFFF
    high, low = a * b_hi, a * b_lo  # each below 2**48
    total = low + ((high & 0xFFFF) << 16)
    return (high >> 16) + (total >> 32), total & 0xFFFFFFFF


def dropout_mask(
    seed: torch.Tensor | int,
    shape: tuple[int, ...],
    p: float,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """The kernels' dropout mask: 1 / (1 - p) if an element is kept, 0 if it is dropped.

    Element i (row-major) is dropped if its 24-bit Philox integer is below floor(p * 2**24).
    """
    kept = philox_uniform(seed, math.prod(shape), device) >= int(p * 2**24)
    return (kept.to(torch.float64) * (1.0 / (1.0 - p) if p < 1 else 0.0)).to(dtype).reshape(shape)
