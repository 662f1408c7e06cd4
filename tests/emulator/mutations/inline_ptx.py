"""Inline PTX and intrinsics of primitives.cuh, which the emulator replaces: proven by executing what nvcc makes.

What the compiler is told about a statement is no instruction, and execution cannot see it: the source is asked.
"""

import torch

from tests.cases import BY_NAME
from tests.emulator.mutations import Check, Mutation, of_case
from tests.emulator.ptx import assembly

OPERATION = "gated_adapter"
PTX = True
FILES = ()


def of_assembly(emulator):
    """What the sources under test leave unsaid about their assembly."""
    return next(iter(assembly.of_sources(emulator.kernels.csrc)), None)


CHECKS = [Check("assembly that touches memory is ordered", of_assembly)]
CHECKS += [
    of_case(BY_NAME["gated_adapter", name], dtype)
    for name in ("large-bart", "odd")
    for dtype in (torch.bfloat16, torch.float16)
]

FILE = "common/primitives.cuh"
BFLOAT16, HALF = r"(f32\.bf16\.bf16\.f32[^;]*", r"(f32\.f16\.f16\.f32[^;]*"

# Statement -> how its text begins.
ORDERED = {
    "ldmatrix": r"ldmatrix\.sync\.aligned\.m8n8\.x4\.shared",
    "ldmatrix of columns": r"ldmatrix\.sync\.aligned\.m8n8\.x4\.trans",
    "cp.async": r"cp\.async\.cg",
    "cp.async's commit": r"cp\.async\.commit_group",
    "cp.async's wait": r"cp\.async\.wait_group",
    "barrier of a group": r"bar\.sync",
    "load of a pack": r"ld\.global\.v4",
    "store of a pack": r"st\.global\.v4",
    "store of half a pack": r"st\.global\.v2\.b32",
}

MUTATIONS = [
    # operands of the matrix units
    Mutation("mma: b's registers exchanged, bfloat16", FILE, BFLOAT16 + r")\{%8, %9\}", r"\1{%9, %8}"),
    Mutation("mma: b's registers exchanged, float16", FILE, HALF + r")\{%8, %9\}", r"\1{%9, %8}"),
    Mutation("mma: a's middle registers exchanged", FILE, BFLOAT16 + r")%5, %6", r"\1%6, %5"),
    Mutation("mma: a's outer registers exchanged", FILE, HALF + r")\{%4, %5, %6, %7\}", r"\1{%7, %5, %6, %4}"),
    Mutation("mma: sums leave exchanged", FILE, r"(f32\.bf16\.bf16\.f32 )\{%0, %1, %2, %3\}", r"\1{%0, %2, %1, %3}"),
    Mutation("mma: bfloat16 as float16", FILE, r"f32\.bf16\.bf16\.f32", "f32.f16.f16.f32"),
    Mutation("mma: float16 as bfloat16", FILE, r"f32\.f16\.f16\.f32", "f32.bf16.bf16.f32"),
    Mutation(
        "mma: an operand's words given twice",
        FILE,
        r'"r"\(b0\), "r"\(b1\)\);\n\}\nPETX_DEVICE void mul',
        r'"r"(b0), "r"(b0));\n}\nPETX_DEVICE void mul',
    ),
    # loads of fragments
    Mutation("ldmatrix: .trans lost", FILE, r"x4\.trans\.shared", "x4.shared"),
    Mutation("ldmatrix: .trans where rows are wanted", FILE, r"x4\.shared", "x4.trans.shared"),
    Mutation("ldmatrix: results exchanged", FILE, r"(x4\.shared\.b16 )\{%0, %1, %2, %3\}", r"\1{%1, %0, %2, %3}"),
    Mutation(
        "an address that is not in the shared window",
        FILE,
        r"static_cast<uint32_t>\(__cvta_generic_to_shared\(data_ \+ i\)\)",
        "static_cast<uint32_t>(reinterpret_cast<uintptr_t>(data_ + i))",
    ),
    # asynchronous copies
    Mutation(
        "cp.async: half a pack",
        FILE,
        r"cp\.async\.cg\.shared\.global \[%0\], \[%1\], 16, %2;",
        "cp.async.ca.shared.global [%0], [%1], 8;",
    ),
    Mutation("cp.async: commit lost", FILE, r'asm volatile\("cp\.async\.commit_group;" ::: "memory"\);', ""),
    Mutation("cp.async: a group too many left under way", FILE, r'"n"\(newest\)', '"n"(newest + 1)'),
    Mutation(
        "cp.async: wait lost", FILE, r'asm volatile\("cp\.async\.wait_group %0;" ::"n"\(newest\) : "memory"\);', ""
    ),
    # threads together
    Mutation("barrier of a warp in place of the block's", FILE, r"__syncthreads\(\)", "__syncwarp()"),
    Mutation(
        "shuffle: mask one off",
        FILE,
        r"__shfl_xor_sync\(lanes, value, mask\)",
        "__shfl_xor_sync(lanes, value, mask ^ 1)",
    ),
    Mutation(
        "shuffle: of half the warp",
        FILE,
        r"__shfl_xor_sync\(lanes, value, mask\)",
        "__shfl_xor_sync(lanes & 0xffff, value, mask)",
    ),
    Mutation("threads of another direction", FILE, r"return threadIdx\.x;", "return threadIdx.y;"),
    Mutation("blocks of the other direction", FILE, r"return blockIdx\.y;", "return blockIdx.x;"),
    # what the compiler is told
    *(
        Mutation(f"{name}: volatile lost", FILE, rf'asm volatile(\("{begin})', r"asm\1")
        for name, begin in ORDERED.items()
    ),
    *(
        Mutation(
            f"{name}: memory clobber lost", FILE, rf'(asm volatile\("{begin}[^;]*;"[^;]*?)\s*:+ "memory"\)', r"\1)"
        )
        for name, begin in ORDERED.items()
    ),
]
