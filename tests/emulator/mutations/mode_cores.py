"""Forward and backward of the cores of all mode vectors."""

import torch

from tests.cases.mode_cores import CASES, WIDE
from tests.emulator.mutations import Mutation, of_case

OPERATION = "mode_cores"
FILES = ("mode_cores/forward.cu",)

BY_NAME = {case.name: case for case in [*CASES, *WIDE]}
NAMES = """soft sigmoid-each diagonal-sigmoid-each diagonal-soft odd rank-one splits wide-diagonal wide wide-rank
wide-rank-each""".split()

CHECKS = [of_case(BY_NAME[name], dtype) for name in NAMES for dtype in (torch.float32, torch.bfloat16)]

FILE = "mode_cores/forward.cu"

MUTATIONS = [
    # the gate
    Mutation("threshold of the first rank", FILE, r"p.each \? k : 0", "0"),
    Mutation("threshold by the slice", FILE, r"rank \+ \(turned \? i : k\)", "rank + (turned ? k : i) % p.rank"),
    Mutation(
        "second tile of ranks has the first's thresholds", FILE, r"rank \+ \(turned \? i : k\)", "(turned ? i : k)"
    ),
    Mutation(
        "the same in dP alone", FILE, r"p.rank \+ rank, rank, p.rank - rank\}", "p.rank + rank, 0, p.rank - rank}"
    ),
    Mutation(
        "slopes at another temperature", FILE, r"(p, k\), inverse) = C\(1 / p.temperature\)", r"\1 = C(p.temperature)"
    ),
    Mutation("lost slope by the core", FILE, r"grad \* slopes.value", "grad"),
    Mutation("swapped slopes", FILE, r"grad \* slopes.threshold", "grad * slopes.value"),
    Mutation(
        "slopes of the first tile of ranks",
        FILE,
        r"slopes_at<T>\(p, at_core, rank \+ j\)",
        "slopes_at<T>(p, at_core, j)",
    ),
    # products
    Mutation(
        "turned core",
        FILE,
        r"turned \? i \+ k \* p.rank : i \* p.rank \+ k",
        "turned ? i * p.rank + k : i + k * p.rank",
    ),
    Mutation("last rank left out", FILE, r"vectors, core, p.rank\)", "vectors, core, p.rank - (p.rank > 1))"),
    Mutation("last mode left out of dC", FILE, r"grads, vectors, p.modes\)", "grads, vectors, p.modes - 1)"),
    Mutation("modes past the tile not made", FILE, r"down = \(p.modes \+ Tile::kM - 1\) / Tile::kM", "down = 1"),
    Mutation("second tile has the first's modes", FILE, r"p.vectors\) \+ mode \* p.rank", "p.vectors)"),
    Mutation("missing tail mask", FILE, r"mode \+ i < p.modes && slice \+ j < slices", "mode + i < p.modes"),
    Mutation(
        "missing tail mask of the gradient",
        FILE,
        r"slice \+ i < slices && rank \+ j < p.rank\) \{",
        "slice + i < slices) {",
    ),
    # sums of the threshold's gradient
    Mutation("last row left out of the sum", FILE, r"i < Tile::kM; \+\+i", "i < Tile::kM - 1; ++i"),
    Mutation("last column left out of the sum", FILE, r"k < Tile::kN; \+\+k", "k < Tile::kN - 1; ++k"),
    Mutation("first column left out of the sum", FILE, r"k = 1; k < Tile::kN", "k = 2; k < Tile::kN"),
    Mutation("all tiles' thresholds in one place", FILE, r"slice / Tile::kM \* p.rank \+ rank \+ j", "rank + j"),
    Mutation("all blocks' threshold in one place", FILE, r"plan.dthreshold \+ block", "plan.dthreshold"),
    Mutation(
        "threshold of the first tile of ranks",
        FILE,
        r"p.each \? plan.slice_tiles : plan.core_blocks",
        "plan.slice_tiles",
    ),
    # splits of dP
    Mutation("last split too long", FILE, r"slices - begin < plan.size \? slices - begin : plan.size", "plan.size"),
    Mutation("splits overlap", FILE, r"begin = split \* plan.size", "begin = split * (plan.size - 1)"),
    Mutation("splits in one place", FILE, r"\(split \* p.modes \+ mode \+ i\)", "(mode + i)"),
    Mutation("dP of the blocks before", FILE, r"block - plan.core_blocks\)", "block - plan.core_blocks / 2)"),
    # diagonal
    Mutation(
        "diagonal threshold by the mode",
        FILE,
        r"threshold_of<T>\(p, i % p.rank\), inverse",
        "threshold_of<T>(p, i / p.rank % p.rank), inverse",
    ),
    Mutation("diagonal gate lost in dP", FILE, r"at<T>\(g.dcores, i\) \* weight", "at<T>(g.dcores, i)"),
    Mutation("diagonal slope lost", FILE, r"sum \* slopes.value", "sum"),
    Mutation(
        "last mode left out of the diagonal",
        FILE,
        r"i < p.modes \* p.rank; i \+= p.rank",
        "i < (p.modes - 1) * p.rank; i += p.rank",
    ),
    Mutation("ranks past the block left out", FILE, r"k \+= kSumLaunch.threads", "k += 2 * kSumLaunch.threads"),
    Mutation(
        "last thread left out of the sum", FILE, r"k < kSumLaunch.threads; \+\+k", "k + 1 < kSumLaunch.threads; ++k"
    ),
]
