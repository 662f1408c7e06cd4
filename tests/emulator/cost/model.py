"""Modelled times on an H100 SXM, from counts. No GPU has run them; docs/cost.md explains each term.

A launch takes the longest of what its instructions need of the issue slots, its bytes of the second-level cache, its
compulsory bytes of memory and its products of the matrix units, plus a fixed part. ``SOURCES`` names where each
constant is from; the model's error is some -25 % to +50 %.
"""

import math
from dataclasses import dataclass

from tests.emulator.cost.counting import MATRIX_FLOPS, Kernel

CLOCK = 1.755e9  # Hz, boost of the SXM board
MULTIPROCESSORS, SCHEDULERS = 132, 4
L2 = 5.5e12  # bytes/s
DRAM = 2.9e12  # bytes/s, of 3.35e12
MATRIX = 0.62 * 990e12  # FLOP/s of mma.sync on bfloat16
LAUNCH = 2e-6  # s, of one kernel behind another in a stream
VALUE = 2  # bytes, of the type that calls are counted in
# Share of the issue slots that warps fill, by warps of a scheduler: from a replay of the site's element loop.
ISSUE = {2: 0.43, 4: 0.74, 6: 0.85, 8: 0.90}

SOURCES = {
    "CLOCK, MULTIPROCESSORS": "NVIDIA H100 datasheet",
    "L2": "published micro-benchmarks of an H100 (7.0e12 read) less a fifth for mixed traffic",
    "DRAM": "0.87 of the data sheet",
    "PLAIN_GEMM": "the data sheet's 67e12, of which large products of cuBLAS reach about 0.8",
    "MATRIX": "mma.sync reaches 0.62 of wgmma's peak (arXiv 2501.12084)",
    "LAUNCH": "published figures of back-to-back kernels, 1.3 to 2.5 microseconds",
}

# Eager torch: element-wise kernels and skinny products as shares of DRAM, FLOP/s of large products, of float32 on the
# plain units.
ELEMENTWISE, SKINNY, GEMM, PLAIN_GEMM = 0.85, 0.55, 0.65 * 990e12, 0.8 * 67e12


@dataclass
class Time:
    issue: float
    l2: float
    matrix: float
    launch: float = LAUNCH

    @property
    def seconds(self) -> float:
        return max(self.issue, self.l2, self.matrix) + self.launch


def issued(kernel: Kernel, resident: int) -> float:
    """Seconds of the busiest multiprocessor: its blocks, some at a time, each warp's instructions one a cycle and
    scheduler at best. A PTX instruction is taken for one of the machine's."""
    warps = kernel.threads // 32
    each = kernel.instructions / 32 / warps / kernel.blocks  # of a warp
    left, cycles = math.ceil(kernel.blocks / MULTIPROCESSORS), 0.0
    while left > 0:
        together = min(left, max(resident, 1))
        of_scheduler = together * warps / SCHEDULERS
        share = ISSUE[min(ISSUE, key=lambda known: abs(known - of_scheduler))]
        cycles += of_scheduler * each / share
        left -= together
    return cycles / CLOCK


def product_seconds(bytes_: float, flops: float, plain: bool = False) -> float:
    """A product of torch's, petx's as eager's; ``plain`` of float32 without TF32, as torch multiplies it by default."""
    return max(bytes_ / (SKINNY * DRAM), flops / (PLAIN_GEMM if plain else GEMM)) + LAUNCH


def launch_time(kernel: Kernel, resident: int) -> Time:
    asked = kernel.counts["sectors_read"] + kernel.counts["sectors_written"]
    return Time(
        issued(kernel, resident),
        asked / L2,
        kernel.counts["matrix_products"] * MATRIX_FLOPS / MATRIX,
    )


def call_time(kernels: list[Kernel], resident: dict[str, int], floor_bytes: float) -> float:
    """Seconds of one direction; at least what memory takes for the bytes that must move."""
    times = [
        product_seconds(VALUE * (m * k + k * n + m * n), 2 * m * k * n)
        for m, k, n in (kernel.product for kernel in kernels if kernel.product)
    ]
    times += [launch_time(kernel, resident[kernel.name]).seconds for kernel in kernels if not kernel.product]
    return max(sum(times), floor_bytes / DRAM + LAUNCH)


def floor_time(flops: float, bytes_: float) -> float:
    """Nothing can be faster: each byte once, each product at the matrix units' rate."""
    return max(flops / MATRIX, bytes_ / DRAM) + LAUNCH
