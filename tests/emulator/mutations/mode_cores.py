"""Forward and backward of the cores of all mode vectors."""

import torch

from tests.cases.mode_cores import CASES, WIDE
from tests.emulator.mutations import Mutation, of_case

OPERATION = "mode_cores"
FILES = ("mode_cores/backward.cu",)

BY_NAME = {case.name: case for case in [*CASES, *WIDE]}
NAMES = """soft sigmoid-each diagonal-sigmoid-each diagonal-soft odd rank-one splits wide-diagonal wide wide-rank
wide-rank-each""".split()

CHECKS = [of_case(BY_NAME[name], dtype) for name in NAMES for dtype in (torch.float32, torch.bfloat16)]

BLOCK, FORWARD, BACKWARD = (f"mode_cores/{name}" for name in ("block.cuh", "forward.cu", "backward.cu"))
PLAN = "mode_cores/plan.h"

MUTATIONS = [
    Mutation("grid in the other order", FORWARD, r"plan.across, plan.down", "plan.down, plan.across"),
    # the gate
    Mutation("threshold of the first rank", BLOCK, r"p.each \? k : 0", "0"),
    Mutation(
        "threshold by the slice", BLOCK, r"rank \+ \(transposed \? i : k\)", "rank + (transposed ? k : i) % p.rank"
    ),
    Mutation(
        "second tile of ranks has the first's thresholds",
        BLOCK,
        r"rank \+ \(transposed \? i : k\)",
        "(transposed ? i : k)",
    ),
    Mutation(
        "the same in dP alone", BACKWARD, r"p.rank \+ rank, rank, p.rank - rank\}", "p.rank + rank, 0, p.rank - rank}"
    ),
    Mutation(
        "slopes at another temperature",
        BACKWARD,
        r"(p, k\), inverse) = p.inverse_temperature",
        r"\1 = C(1)",
    ),
    Mutation("lost slope by the core", BACKWARD, r"grad \* slopes.value", "grad"),
    Mutation("swapped slopes", BACKWARD, r"grad \* slopes.threshold", "grad * slopes.value"),
    Mutation(
        "slopes of the first tile of ranks",
        BACKWARD,
        r"slopes_at<T>\(p, at_core, rank \+ j\)",
        "slopes_at<T>(p, at_core, j)",
    ),
    # products
    Mutation(
        "turned core",
        BLOCK,
        r"transposed \? i \+ k \* p.rank : i \* p.rank \+ k",
        "transposed ? i * p.rank + k : i + k * p.rank",
    ),
    Mutation("last rank left out", FORWARD, r"vectors, core, p.rank\)", "vectors, core, p.rank - (p.rank > 1))"),
    Mutation("last mode left out of dC", BACKWARD, r"grads, vectors, p.modes\)", "grads, vectors, p.modes - 1)"),
    Mutation("modes past the tile not made", PLAN, r"down\(tiles_along\(p.modes\)\)", "down(1)"),
    Mutation("second tile has the first's modes", FORWARD, r"p.vectors\) \+ mode \* p.rank", "p.vectors)"),
    Mutation("missing tail mask", FORWARD, r"mode \+ i < p.modes && slice \+ j < slices", "mode + i < p.modes"),
    Mutation(
        "missing tail mask of the gradient",
        BACKWARD,
        r"slice \+ i < slices && rank \+ j < p.rank\) \{",
        "slice + i < slices) {",
    ),
    # sums of the threshold's gradient
    Mutation("last row left out of the sum", BACKWARD, r"i < Tile::kM; \+\+i", "i < Tile::kM - 1; ++i"),
    Mutation("last column left out of the sum", BACKWARD, r"k < Tile::kN; \+\+k", "k < Tile::kN - 1; ++k"),
    Mutation("first column left out of the sum", BACKWARD, r"k = 1; k < Tile::kN", "k = 2; k < Tile::kN"),
    Mutation("all tiles' thresholds in one place", BACKWARD, r"slice / Tile::kM \* p.rank \+ rank \+ j", "rank + j"),
    Mutation("all blocks' threshold in one place", BACKWARD, r"grid.dthreshold \+ block", "grid.dthreshold"),
    Mutation(
        "threshold of the first tile of ranks",
        BACKWARD,
        r"p.each \? grid_.slice_tiles : grid_.core_blocks",
        "grid_.slice_tiles",
    ),
    # splits of dP
    Mutation("last split too long", BACKWARD, r"slices - begin < grid.size \? slices - begin : grid.size", "grid.size"),
    Mutation("splits overlap", BACKWARD, r"begin = split \* grid.size", "begin = split * (grid.size - 1)"),
    Mutation("splits in one place", BACKWARD, r"\(split \* p.modes \+ mode \+ i\)", "(mode + i)"),
    Mutation("dP of the blocks before", BACKWARD, r"block - grid.core_blocks\)", "block - grid.core_blocks / 2)"),
    # diagonal
    Mutation(
        "diagonal threshold by the mode",
        FORWARD,
        r"threshold_of<T>\(p, i % p.rank\), inverse",
        "threshold_of<T>(p, i / p.rank % p.rank), inverse",
    ),
    Mutation("diagonal gate lost in dP", BACKWARD, r"at<T>\(g.dcores, i\) \* weight", "at<T>(g.dcores, i)"),
    Mutation("diagonal slope lost", BACKWARD, r"sum \* slopes.value", "sum"),
    Mutation(
        "last mode left out of the diagonal",
        BACKWARD,
        r"i < p.modes \* p.rank; i \+= p.rank",
        "i < (p.modes - 1) * p.rank; i += p.rank",
    ),
    Mutation("ranks past the block left out", BACKWARD, r"k \+= kSumLaunch.threads", "k += 2 * kSumLaunch.threads"),
    Mutation(
        "last thread left out of the sum", BACKWARD, r"k < kSumLaunch.threads; \+\+k", "k + 1 < kSumLaunch.threads; ++k"
    ),
]
