"""Forward and backward of the cores of all mode vectors."""

import torch

from tests.cases.mode_cores import CASES, WIDE
from tests.emulator.mutations import Mutation, Turned, of_assertions, of_case
from tests.emulator.test_grids import ROWS, test_modes_and_slices_lie_on_the_first_axis

OPERATION = "mode_cores"
FILES = ("mode_cores/backward.cu",)

BY_NAME = {case.name: case for case in [*CASES, *WIDE]}
NAMES = """soft sigmoid-each diagonal-sigmoid-each diagonal-soft odd rank-one splits wide-diagonal wide wide-rank
wide-rank-each none wide-none""".split()

CHECKS = [of_case(BY_NAME[name], dtype) for name in NAMES for dtype in (torch.float32, torch.bfloat16)]
CHECKS += [
    of_assertions(f"grids of many {what}", test_modes_and_slices_lie_on_the_first_axis, rank, count)
    for what, rank, count in (("slices", 2049, 2), ("modes", 2, ROWS))
]

BLOCK, FORWARD, BACKWARD = (f"mode_cores/{name}" for name in ("block.cuh", "forward.cu", "backward.cu"))
PLAN = "mode_cores/plan.h"

MUTATIONS = [
    # the grid
    Turned(
        "modes and slices on the grid's second axis", FORWARD, r"plan\.blocks\(\), 1, Tile", "1, plan.blocks(), Tile"
    ),
    Mutation(
        "backward's blocks on the grid's second axis",
        BACKWARD,
        r"int64_t block = block_x\(\);([\s\S]*?)grid_\.blocks\(\), 1,",
        r"int64_t block = block_y();\1 1, grid_.blocks(),",
    ),
    Mutation(
        "workspace a split short", BACKWARD, r"splits \* p\.modes \* p\.rank : 0", "(splits - 1) * p.modes * p.rank : 0"
    ),
    Mutation("grid in the other order", FORWARD, r"block_x\(\) / across\)", "block_x() % across)"),
    # the gate
    Mutation("threshold of the first rank", BLOCK, r"p.each \? k : 0", "0"),
    Mutation("threshold by the slice", BLOCK, r"transposed \? i : k\) : Compute", "transposed ? k : i) : Compute"),
    Mutation("second tile of ranks has the first's thresholds", BLOCK, r"rank \+ along\)", "along)"),
    Mutation(
        "gate lost where values are fetched", BLOCK, r"store\(value, gated_at\(from, along\)\)", "value = read(from)"
    ),
    Mutation("gate's values copied as they are", BLOCK, r"return false; \}", "return true; }"),
    Mutation(
        "the same in dP alone", BACKWARD, r"p.rank \+ rank, rank, p.rank - rank\}", "p.rank + rank, 0, p.rank - rank}"
    ),
    Mutation(
        "slopes at another temperature",
        BACKWARD,
        r"(p, k\), inverse) = p.inverse_temperature",
        r"\1 = C(1)",
    ),
    Mutation("lost slope by the core", BACKWARD, r", run.value\[j\] \*= slopes.value", ""),
    Mutation("swapped slopes", BACKWARD, r"run.value\[j\] \* slopes.threshold", "run.value[j] * slopes.value"),
    Mutation("slopes of the first tile of ranks", BACKWARD, r"at_core \+ j, rank \+ c \+ j\)", "at_core + j, c + j)"),
    Mutation("slopes of a run's first value", BACKWARD, r"at_core \+ j, rank", "at_core, rank"),
    # products
    Mutation("turned core", BLOCK, r"line\(transposed \? k : i\)", "line(transposed ? i : k)"),
    Mutation("last rank left out", FORWARD, r"vectors, core, p.rank\)", "vectors, core, p.rank - (p.rank > 1))"),
    Mutation("last rank left out without a gate", FORWARD, r"p.rank\), p.rank\);", "p.rank), p.rank - (p.rank > 1));"),
    Mutation("gate left out", FORWARD, r"p.gate == Gate::none", "true"),
    Mutation("gate left out of dP", BACKWARD, r"if \(p.gate == Gate::none\) \{", "if (true) {"),
    Mutation("no slopes", BACKWARD, r"if \(p.gate == Gate::none\) continue;", "continue;"),
    Mutation("last mode left out of dC", BACKWARD, r"grads, vectors, p.modes\)", "grads, vectors, p.modes - 1)"),
    Mutation("modes past the tile not made", PLAN, r"down\(tiles_along\(p.modes\)\)", "down(1)"),
    Mutation(
        "second tile has the first's modes", FORWARD, r"modes\(p.modes, block_x\(\) / across\)", "modes(p.modes, 0)"
    ),
    Mutation("missing tail mask", FORWARD, r"each_run\(slice, slices,", "each_run(slice, slice + 64,"),
    Mutation(
        "missing tail mask of the gradient", BACKWARD, r"slice \+ row < slices \? p.rank - rank - c : 0", "p.rank"
    ),
    Mutation("gradient's second tile of ranks", BACKWARD, r"p.rank \+ rank \+ c;", "p.rank + c;"),
    Mutation("modes past the last in dP", BACKWARD, r"if \(mode \+ row >= p.modes\) return;", ""),
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
    Mutation("splits in one place", BACKWARD, r"\(split \* p.modes \+ mode \+ row\)", "(mode + row)"),
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
