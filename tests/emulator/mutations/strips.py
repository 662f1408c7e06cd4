"""Products by strips, and the launches of cp_reconstruct that take them; expert_mixture's have the same strips."""

import torch

from tests.emulator.mutations import Mutation, of_case, under
from tests.emulator.test_strips_cuda import CASES

OPERATION = "cp_reconstruct"
FILES = ("common/strip.cuh", "cp_reconstruct/strips.cuh", "cp_reconstruct/row_strips.cuh")

CHECKS = [
    under(of_case(case, torch.bfloat16), PETX_CUDA_WIDE="2", PETX_CUDA_SPLITS="3")
    for case in CASES
    if case.operation == OPERATION
]

STRIP, FORWARD, BACKWARD = "common/strip.cuh", "cp_reconstruct/forward.cu", "cp_reconstruct/backward.cu"
UPDATE, ROW_STRIPS = "cp_reconstruct/strips.cuh", "cp_reconstruct/row_strips.cuh"

MUTATIONS = [
    # images and stages
    Mutation("waits for one group too few", STRIP, r"wait_copies<kStages - 2>", "wait_copies<kStages - 1>"),
    Mutation("stale stage multiplied", STRIP, r"in\(now \* kImagePacks", "in((now + 1) % kStages * kImagePacks"),
    Mutation("filled stage is the next", STRIP, r"now \? now - 1 : kStages - 1\)", "now)"),
    Mutation("last tile not brought", STRIP, r"tile \+ kStages - 1 < count", "tile + kStages < count"),
    Mutation("every tile the first", STRIP, r"int64_t\(tile\) \* kImage", "0"),
    Mutation("every share the first", STRIP, r"images \+= first \* kImage;", ""),
    Mutation("one half", STRIP, r"half < 2; \+\+half", "half < 1; ++half"),
    Mutation("image past the depth", STRIP, r"if \(line < depth && column < from.count\)", "if (column < from.count)"),
    Mutation("image past the columns", STRIP, r"if \(line < depth && column < from.count\)", "if (line < depth)"),
    Mutation("image in memory's order", STRIP, r"j / 2 \* 8 \+ pack % 4 \* 2 \+ j % 2", "pack % 4 * 8 + j"),
    Mutation("packs not exchanged", STRIP, r"return line / 16 \+ line % 2 \* 4;", "return 0;"),
    Mutation("packs exchanged by half", STRIP, r"return line / 16 \+ line % 2 \* 4;", "return line / 16;"),
    # fragments
    Mutation("depth past the rank", STRIP, r"of < count \? depth - at : 0", "of < count ? kPack : 0"),
    Mutation("rows past the last", STRIP, r"of < count \? depth - at : 0", "depth - at"),
    Mutation("second rows are the first", STRIP, r"of = row\(\) \+ half \* 8", "of = row()"),
    Mutation("words of the other half", STRIP, r"\[half \+ w % 2 \* 2\] = words", "[half * 2 + w % 2] = words"),
    Mutation(
        "every step the first", STRIP, r"half \* 4 \+ pair \* 2, step \* 4 \* kLinePacks", "half * 4 + pair * 2, 0"
    ),
    Mutation("fragments of the first pair", STRIP, r"half \* 4 \+ pair \* 2, step", "half * 4, step"),
    Mutation("columns of the first half", STRIP, r"half \* 4 \+ pair \* 2, step", "pair * 2, step"),
    Mutation(
        "swapped rows",
        STRIP,
        r"return of\[j / 2\]\[2 \* n \+ j % 2\]; \}\n    PETX",
        "return of[j / 2][2 * (1 - n) + j % 2]; }\n    PETX",
    ),
    Mutation(
        "kept rows of the next thread", STRIP, r"get\(step \* kThreads \+ thread", "get(step * kThreads + 1 + thread"
    ),
    # along the columns
    Mutation("every turned step the first", STRIP, r"half \* 4 \+ step \* 2, pair", "half * 4, pair"),
    Mutation("turned columns of the first half", STRIP, r"half \* 4 \+ step \* 2, pair", "step * 2, pair"),
    Mutation("turned lines of the first pair", STRIP, r"step \* 2, pair \* 4 \* kLinePacks", "step * 2, 0"),
    Mutation(
        "turned rows swapped",
        STRIP,
        r"\{first.word\[2 \* step\], second.word\[2 \* step\]",
        "{second.word[2 * step], first.word[2 * step]",
    ),
    # the launches
    Mutation("lost low part of A", FORWARD, r"update, in, half, low, high", "update, in, half, high"),
    Mutation("A of the first module", UPDATE, r"all \+ \(module \* p.d_out \+ first\)", "all + (first)"),
    Mutation("every image the first", UPDATE, r"images \+ tile \* Strip<T>::kImage", "images"),
    Mutation("rows past the end", UPDATE, r"return row\(n\) < d_out;", "return true;"),
    Mutation("lost slope", ROW_STRIPS, r"d\[j\] \*= slopes.value", "d[j] *= 1"),
    Mutation("threshold's slope lost", ROW_STRIPS, r"d\[j\] \* slopes.threshold", "d[j]"),
    Mutation(
        "dA in the first module's place", ROW_STRIPS, r"\* p.modules \+ module\) \* p.rank", "* p.modules) * p.rank"
    ),
    Mutation("D of the first module", ROW_STRIPS, r"to.stored \+ block_y\(\) \* p.d_out \* to.stride :", "to.stored :"),
    Mutation("dU's split too long", BACKWARD, r"begin \+ split_rows < rows \? begin \+ split_rows : rows", "rows"),
    Mutation("dU's rows by halves", BACKWARD, r"row < end; row \+= kDepth", "row < end; row += end"),
    Mutation("ranks past the last", BACKWARD, r"if \(i \+ 1 < p.rank\) ", ""),
]
