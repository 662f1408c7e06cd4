"""Forward and backward of PETAL's update beside K projections."""

import torch

from tests.cases.mode_update import CASES, WIDE
from tests.emulator.mutations import Mutation, of_assertions, of_case, under
from tests.emulator.mutations._common import MASK, ROWS, SHARES
from tests.emulator.test_mode_update_cuda import (
    test_gradients_from_some_results,
    test_nothing_is_made_for_gradients_that_nobody_asks_for,
)
from tests.emulator.test_token_sums import test_dropout_at_large_positions

OPERATION = "mode_update"
FILES = ("mode_update/block.cuh", "mode_update/forward.cu", "mode_update/backward.cu")

BY_NAME = {case.name: case for case in [*CASES, *WIDE]}
NAMES = """dropout dropout-shared dropout-diagonal four diagonal projected odd odd-diagonal wide-shares
beside splits-shared""".split()

CHECKS = [
    *(of_case(BY_NAME[name], dtype) for name in NAMES for dtype in (torch.float32, torch.bfloat16)),
    *(under(of_case(BY_NAME["wide"], torch.bfloat16), PETX_CUDA_SHARES=shares) for shares in ("1", "2")),
    of_assertions("some results", test_gradients_from_some_results),
    of_assertions("x's gradient alone", test_nothing_is_made_for_gradients_that_nobody_asks_for),
    of_assertions("dropout past 32 bits", test_dropout_at_large_positions, 2**32 + 7),
]

BLOCK, FORWARD, BACKWARD = "mode_update/block.cuh", "mode_update/forward.cu", "mode_update/backward.cu"
SUMS = "common/token_sums.cuh"

MUTATIONS = [
    *MASK,
    *ROWS,
    *SHARES,
    # dropout
    Mutation("every projection has the first's mask", BLOCK, r"p.mask_begin\(k\)", "p.mask_begin(0)"),
    Mutation(
        "shared mask taken as independent", BLOCK, r"p.mask_begin\(k\)", "static_cast<uint64_t>(k) * p.rows * p.rank"
    ),
    Mutation(
        "mask's rows one element short",
        BLOCK,
        r"static_cast<uint64_t>\(token\) \* p.rank",
        "static_cast<uint64_t>(token) * (p.rank - 1)",
    ),
    # cores
    Mutation("core of the first projection", BLOCK, r"k \* p.core_size\(\)", "0 * p.core_size()"),
    Mutation("turned core", BLOCK, r"weight_columns\(core\(k\),", "weight_rows(core(k),"),
    Mutation("diagonal core not multiplied", BLOCK, r"if \(scaled\) multiply_by", "if (false) multiply_by"),
    Mutation(
        "last rank left out of the core", BLOCK, r"(begin, p.rank, p.rank\)), p.rank\);", r"\1, p.rank - (p.rank > 1));"
    ),
    Mutation("fourth projection's table entry", BLOCK, r"k & 1 \? each\[3\] : each\[2\]", "each[2]"),
    # the forward
    Mutation("base not added", FORWARD, r"if \(base\) \{", "if (false) {"),
    Mutation("base of the first projection", FORWARD, r"of_mode\(out_.base, k\)", "of_mode(out_.base, 0)"),
    Mutation("bases' rows taken as dense", FORWARD, r"out_.base_stride", "p.d_out"),
    Mutation("h not dropped", FORWARD, r"mix\(kept_, k, mixed_\)", "mix(h_, k, mixed_)"),
    Mutation("last rank left out of V", FORWARD, r"(p.d_out, p.rank\)), p.rank\);", r"\1, p.rank - (p.rank > 1));"),
    Mutation("one block of rows too few", "mode_update/plan.h", r"tiles_along\(p.rows\)", "tiles_along(p.rows - 1)"),
    Mutation("share begins with its projection", FORWARD, r"begin > k \* tiles \? begin - k \* tiles : 0", "0"),
    Mutation("share ends with its projection", FORWARD, r" && k \* tiles \+ tile < end", ""),
    Mutation(
        "share of one projection", FORWARD, r"k \* tiles < end; \+\+k", "k * tiles < end && k == begin / tiles; ++k"
    ),
    Mutation("all shares' h in one place", FORWARD, r"passing.h \+ \(share - 1\) \* size", "static_cast<T*>(p.h)"),
    Mutation("all shares' g in one place", FORWARD, r"passing.mixed \+ share \* size", "passing.mixed"),
    # the backward
    Mutation("dy of the first projection", BACKWARD, r"block_rows\(of_mode\(g.dy, k\)", "block_rows(of_mode(g.dy, 0)"),
    Mutation("dh not dropped", BACKWARD, r"this->drop\(part, k, column\);", ";"),
    Mutation(
        "missing dropout scale in the backward",
        BACKWARD,
        r"this->drop\(part, k, column\);",
        "this->drop(part, k, column); for (C& value : part.value) value /= p.mask.keep;",
    ),
    Mutation("dh by the first projection's mask", BACKWARD, r"drop\(part, k, column\)", "drop(part, 0, column)"),
    Mutation(
        "core not turned in dh", BACKWARD, r"Base::weight_rows\(this->core\(k\),", "Base::weight_columns(this->core(k),"
    ),
    Mutation("dh of the last projection alone", BACKWARD, r"begun \? Tile::result", "false ? Tile::result"),
    Mutation("dh begun with what lay there", BACKWARD, r"begun \? Tile::result", "true ? Tile::result"),
    Mutation(
        "all shares' dh in one place",
        BACKWARD,
        r"to_.more_dh \+ \(block_y\(\) - 1\) \* p.rows \* p.rank",
        "to_.dh",
    ),
    Mutation("dM by the whole h", BACKWARD, r"p.mask.drops\(\) \? to_.kept\[k\] : p.h", "p.h"),
    Mutation("diagonal's gradient by the whole h", BACKWARD, r"this->drop\(kept, k, column\);", ";"),
    Mutation(
        "diagonal core lost in dh",
        BACKWARD,
        r"Base::multiply_by\(part, Base::load_run\(this->core\(k\), column, left\)\);",
        ";",
    ),
    Mutation(
        "dM turned",
        BACKWARD,
        r"product\(dcore, (p.mask.drops\(\) \? to_.kept\[k\] : p.h), to_.dg\[k\],",
        r"product(dcore, to_.dg[k], \1,",
    ),
    Mutation("dM numbered by the given dy", BACKWARD, r" \+ k \* p.core_size\(\)", " + (pairs - 1) * p.core_size()"),
    Mutation("all dM in one place", BACKWARD, r" \+ k \* p.core_size\(\)", ""),
    Mutation("dV by the whole h", BACKWARD, r"mix\(p.mask.drops\(\) \? of_mode\(to_.kept, k\) : h,", "mix(h,"),
    Mutation("dV by the first g", BACKWARD, r"mixed\[pairs\+\+\] = to_.mixed\[k\]", "mixed[pairs++] = to_.mixed[0]"),
    Mutation("last rank left out of dx", BACKWARD, r"(p.d_in, p.d_in\)),\s*p.rank\);", r"\1, p.rank - (p.rank > 1));"),
    # sums of several products
    Mutation("last product left out", SUMS, r"piece < job.pieces;", "piece < job.pieces - (job.pieces > 1);"),
    Mutation("products' sums in one place", SUMS, r"split_sums_ \+ k \* m \* n", "split_sums_"),
    Mutation("a split has room for one product", SUMS, r"split_sums_ \+= pieces \* count", "split_sums_ += count"),
]
