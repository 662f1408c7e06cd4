"""Forward and backward of PETAL's update beside K projections."""

import torch

from tests.cases.mode_update import CASES, WIDE, modes
from tests.emulator.mutations import Mutation, Turned, of_assertions, of_case, under
from tests.emulator.mutations._common import FACTORS, MASK, ROWS, SHARES
from tests.emulator.test_grids import test_rows_lie_on_the_first_axis
from tests.emulator.test_mode_update_cuda import (
    test_gradients_from_some_results,
    test_hidden_gradients_of_projections_are_summed_in_float32,
    test_masks_at_large_rows,
    test_mode_update,
    test_nothing_is_made_for_gradients_that_nobody_asks_for,
)
from tests.emulator.test_token_sums import test_dropout_at_large_positions

OPERATION = "mode_update"
FILES = tuple(f"mode_update/{name}" for name in ("block.cuh", "forward.cu", "backward.cu", "grads.cuh"))

BY_NAME = {case.name: case for case in [*CASES, *WIDE]}
NAMES = """dropout dropout-shared dropout-diagonal four diagonal projected odd odd-diagonal wide-shares
beside splits-shared deep""".split()

ROWS_OF_128 = [
    modes("wide-tiles", batch=(1, 150), d_in=136, d_out=37, rank=72, count=2, dropout=0.1),
    modes("wide-staged", batch=(1, 150), d_in=331, d_out=136, rank=40, count=2, dropout=0.1),
    modes("wide-parts", batch=(1, 150), d_in=72, d_out=643, rank=72, count=2, dropout=0.1),
]

CHECKS = [
    *(of_case(BY_NAME[name], dtype) for name in NAMES for dtype in (torch.float32, torch.bfloat16)),
    *(under(of_case(BY_NAME["wide"], torch.bfloat16), PETX_CUDA_SHARES=shares) for shares in ("1", "2")),
    *(under(of_case(case, torch.bfloat16), PETX_CUDA_WIDE="2") for case in ROWS_OF_128),
    of_assertions("some results", test_gradients_from_some_results),
    of_assertions("x's gradient alone", test_nothing_is_made_for_gradients_that_nobody_asks_for),
    of_assertions("dropout past 32 bits", test_dropout_at_large_positions, 2**32 + 7),
    of_assertions("masks past 32 bits", test_masks_at_large_rows, 2**26, 2),
    of_assertions("sum of dh", test_hidden_gradients_of_projections_are_summed_in_float32, False),
    of_assertions("grids of many rows", test_rows_lie_on_the_first_axis, OPERATION),
    of_assertions("cost of odd shares", test_mode_update, 64, 64, 4288, 64, 4, {}, torch.bfloat16),
]

BLOCK, FORWARD = "mode_update/block.cuh", "mode_update/forward.cu"
BACKWARD, GRADS = "mode_update/backward.cu", "mode_update/grads.cuh"
PLAN, TILES = "mode_update/plan.h", "common/wide_plan.h"
SUMS = "common/token_sums.cuh"

MUTATIONS = [
    *MASK,
    *FACTORS,
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
    Mutation(
        "row's position in 32 bits",
        BLOCK,
        r"static_cast<uint64_t>\(token\) \* p.rank",
        "static_cast<uint32_t>(token * p.rank)",
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
    Mutation("base not added", FORWARD, r"if \(base\) Block::add_to", "if (false) Block::add_to"),
    Mutation("base of the first projection", FORWARD, r"of_mode\(out.base, k\)", "of_mode(out.base, 0)"),
    Mutation("bases' rows taken as dense", FORWARD, r"out.base_stride", "p.d_out"),
    Mutation("h not dropped", FORWARD, r"block.drop\(run, k, column\);", ";"),
    Mutation(
        "forward: diagonal core not multiplied",
        FORWARD,
        r"if \(p.diagonal\) Block::multiply_by",
        "if (false) Block::multiply_by",
    ),
    Mutation("forward: turned core", FORWARD, r"weight_columns\(block.core\(k\),", "weight_rows(block.core(k),"),
    Mutation(
        "forward: last rank left out of the core",
        FORWARD,
        r"(0, p.rank, p.rank\)),(\s+)p.rank\);",
        r"\1, p.rank - (p.rank > 1));",
    ),
    Mutation(
        "last rank left out of V",
        FORWARD,
        r"(p.d_out, p.rank\)), p.rank, there\)",
        r"\1, p.rank - (p.rank > 1), there)",
    ),
    Mutation("all staged rows in one", BLOCK, r"StagedRows::set\(row,", "StagedRows::set(0,"),
    Mutation("staged packs in one place", BLOCK, r"set\(row, pack_number,", "set(row, 0,"),
    Mutation("h left by nobody", FORWARD, r"if \(first\) Block", "if (false) Block"),
    Mutation("one block of rows too few", PLAN, r"tiles_along\(p.rows\)", "tiles_along(p.rows - 1)"),
    Mutation("share goes past the last tile", FORWARD, r" && n < left; \+\+n", "; ++n"),
    Mutation("forward: every share the first", FORWARD, r"share \* static_cast<int>\(shares.each\)", "0"),
    Mutation("shares of the first projection", FORWARD, r"k = y / count", "k = 0 * count"),
    Mutation("all blocks' g in one place", FORWARD, r"passing.mixed \+ own", "passing.mixed"),
    Mutation("what all blocks multiply in one place", FORWARD, r"passing.kept \+ own", "passing.kept"),
    Mutation("h not added up", FORWARD, r"if \(passing.parts\) \{", "if (false) {"),
    Mutation(
        "all splits of h in one place",
        FORWARD,
        r"return block.put_part\(begin, parts \+ of.split \* Block::Parts::size\(p\)\)",
        "return block.put_part(begin, parts)",
    ),
    Mutation("every split the first", TILES, r"from = split \* each", "from = 0 * each"),
    Mutation("last split too long", TILES, r"depth - from < each \? depth - from : each", "each"),
    Mutation("second tile of h is the first", FORWARD, r"begin = of.tile \* Tile::kN", "begin = 0"),
    Mutation("x U^T left out", FORWARD, r"p.x \? down\(stream\) : 0", "0"),
    Turned(
        "rows on the grid's second axis",
        FORWARD,
        r"kernel, plan_\.blocks, p\.count \* plan_\.up\.count,",
        "kernel, p.count * plan_.up.count, plan_.blocks,",
    ),
    Mutation("workspace a row short", FORWARD, r"p\.diagonal \? 0 : copies\)", "p.diagonal ? 0 : copies - p.rank)"),
    # by tiles of 128 rows
    Mutation(
        "second half of h is the first", FORWARD, r"block\(p, 2 \* block_x\(\) \+ half\)", "block(p, 2 * block_x())"
    ),
    Mutation("one half of h left out", FORWARD, r"half < 2; \+\+half", "half < 1; ++half"),
    Mutation(
        "all wide splits of h in one place",
        FORWARD,
        r"(half, begin, parts) \+ of.split \* Block::Parts::size\(p\)",
        r"\1",
    ),
    Mutation("second wide tile of h is the first", FORWARD, r"begin = of.tile \* Wide::kN", "begin = 0"),
    Mutation(
        "second half's part is the first's",
        BACKWARD,
        r"Block\(p, 2 \* block_x\(\) \+ half\)",
        "Block(p, 2 * block_x())",
    ),
    Mutation("values of the first half twice", BLOCK, r"Wide::result\(half \* Tile::kM \+ row", "Wide::result(row"),
    Mutation("second block's g left out", BACKWARD, r"half < 2 && \(2", "half < 1 && (2"),
    Mutation(
        "second half's dg is the first's",
        GRADS,
        r"to, 2 \* block_x\(\) \+ half\);(\s+of.put_output)",
        r"to, 2 * block_x());\1",
    ),
    Mutation(
        "second half's part of dh is the first's",
        GRADS,
        r"to, 2 \* block_x\(\) \+ half\);(\s+of.put_hidden)",
        r"to, 2 * block_x());\1",
    ),
    Mutation("wide core of the first projection", GRADS, r"p.cores\) \+ k \* p.core_size\(\)", "p.cores)"),
    Mutation("wide core not turned", GRADS, r"Base::weight_rows\(core,", "Base::weight_columns(core,"),
    # the backward
    Turned(
        "backward's rows on the grid's second axis",
        BACKWARD,
        r"mode_outputs<T>, plan_\.blocks, blocks,",
        "mode_outputs<T>, blocks, plan_.blocks,",
    ),
    Mutation(
        "backward's workspace a row short",
        BACKWARD,
        r"needed \? p\.rows \* p\.rank : 0",
        "needed ? (p.rows - 1) * p.rank : 0",
    ),
    Mutation(
        "dh rounded after each projection",
        GRADS,
        r"if \(of_mode\(g.dy, k\)\) (RowBlock<T>::add_to\(sum, .*\);)",
        r"if (of_mode(g.dy, k)) { \1 sum = RowBlock<T>::rounded(sum); }",
    ),
    Mutation(
        "dy of the first projection",
        GRADS,
        r"block_rows\(of_mode\(g.dy, k\)(, p.d_out\),\s+Base::weight_columns\(p.v, begin)",
        r"block_rows(of_mode(g.dy, 0)\1",
    ),
    Mutation(
        "staged dy of the first projection",
        GRADS,
        r"block_rows\(of_mode\(g.dy, k\)(, p.d_out\),\s+Base::weight_columns\(p.v, 0)",
        r"block_rows(of_mode(g.dy, 0)\1",
    ),
    Mutation("dh not dropped", GRADS, r"this->drop\(part, k, column\);", ";"),
    Mutation(
        "missing dropout scale in the backward",
        GRADS,
        r"this->drop\(part, k, column\);",
        "this->drop(part, k, column); for (C& value : part.value) value /= p.mask.keep;",
    ),
    Mutation("dh by the first projection's mask", GRADS, r"drop\(part, k, column\)", "drop(part, 0, column)"),
    Mutation(
        "core not turned in dh",
        GRADS,
        r"Base::weight_rows\(this->core\(k\), begin",
        "Base::weight_columns(this->core(k), begin",
    ),
    Mutation(
        "staged core not turned in dh",
        GRADS,
        r"Base::weight_rows\(this->core\(k\), 0",
        "Base::weight_columns(this->core(k), 0",
    ),
    Mutation(
        "staged core turned in g",
        GRADS,
        r"Base::weight_columns\(this->core\(k\), 0",
        "Base::weight_rows(this->core(k), 0",
    ),
    Mutation("dh of all projections in one place", BACKWARD, r"several_ \? take\(dh\) : to_.dh", "to_.dh"),
    Mutation(
        "dh of the first projection alone",
        GRADS,
        r"k < p.count; \+\+k\)(\n +if \(of_mode\(g.dy, k\)\) RowBlock)",
        r"k < 1; ++k)\1",
    ),
    Mutation("last run of dh alone left out", BACKWARD, r"if \(left > 0\) Row", "if (left > RowBlock<T>::kRun) Row"),
    Mutation("dh alone not made", BACKWARD, r"several_ \? hidden_grads\(stream\) : 0", "several_ ? 0 : 0"),
    Mutation("dh not added up", GRADS, r"several && begin < p.rank", "false && begin < p.rank"),
    Mutation("projections without a dy add to dh", GRADS, r"if \(of_mode\(g.dy, k\)\) RowBlock", "RowBlock"),
    Mutation(
        "all splits of dg in one place",
        BACKWARD,
        r"(block.put_part\(begin, of_mode\(to.parts, k\)) \+ of.split \* Block::Parts::size\(p\)",
        r"\1",
    ),
    Mutation("second tile of dg is the first", BACKWARD, r"begin = of.tile \* Tile::kN", "begin = 0"),
    Mutation(
        "every split's projection the first", BACKWARD, r"(mode_parts\([\s\S]*?)k = y % modes", r"\1k = 0 * modes"
    ),
    Mutation(
        "last part left out of a sum", BLOCK, r"n >= more\) break;\n +Base", "n + 1 >= more) break;\n        Base"
    ),
    Mutation("parts of the first four", BLOCK, r"more > 0; more -= kAhead", "more > 0; more = 0"),
    Mutation("first part for all", BLOCK, r"from \+= size;", ";"),
    Mutation("part's last columns left out", BLOCK, r"begin \+ c < end; c", "begin + c < end - Part::kRun; c"),
    Mutation("rows past the end in a part", BLOCK, r"    if \(!valid\(\)\) return;\n    const", "    const"),
    Mutation("both planes of a part in one", BLOCK, r"piece % kPlanes \* plane\(p\) \+ ", ""),
    Mutation("a run from one plane", BLOCK, r"from \+= Parts::plane\(p\);", ";"),
    Mutation("g_k not made again", BACKWARD, r"again_ \? 2 \* p.count : p.count", "p.count"),
    Mutation("gradients' blocks make g_k", BACKWARD, r"block.output\(block_y\(\) - p.count\)", "block.output(0)"),
    Mutation(
        "all shares' dh in one place",
        GRADS,
        r"to_.more_dh \+ \(block_y\(\) - 1\) \* p.rows \* p.rank",
        "to_.dh",
    ),
    Mutation("dM by the whole h", BACKWARD, r"p.mask.drops\(\) \? to_.kept\[k\] : p.h", "p.h"),
    Mutation(
        "diagonal's gradient by the whole h",
        GRADS,
        r"this->drop\(kept, k, column\);(\s+Base::multiply_by\(kept)",
        r"\1",
    ),
    Mutation("staged dV by the whole h", GRADS, r"this->drop\(kept, k, column\);(\s+if \(of_mode\(to_.kept)", r"\1"),
    Mutation(
        "diagonal core lost in dh",
        GRADS,
        r"Base::multiply_by\(part, Base::load_run\(this->core\(k\), column, left\)\);",
        ";",
    ),
    Mutation(
        "dM turned",
        BACKWARD,
        r"product\(dcore, (p.mask.drops\(\) \? to_.kept\[k\] : p.h), to_.dg\[k\],",
        r"product(dcore, to_.dg[k], \1,",
    ),
    Mutation(
        "dM numbered by the given dy", BACKWARD, r"from\(k \* p.core_size\(\)\)", "from((pairs - 1) * p.core_size())"
    ),
    Mutation("all dM in one place", BACKWARD, r"from\(k \* p.core_size\(\)\)", "from(0)"),
    Mutation("dV by the whole h", GRADS, r"mix\(p.mask.drops\(\) \? of_mode\(to_.kept, k\) : h,", "mix(h,"),
    Mutation("dV by the first g", BACKWARD, r"mixed\[pairs\+\+\] = to_.mixed\[k\]", "mixed[pairs++] = to_.mixed[0]"),
    Mutation("last rank left out of dx", GRADS, r"(p.d_in, p.d_in\)),\s*p.rank\);", r"\1, p.rank - (p.rank > 1));"),
    # sums of several products
    Mutation(
        "last product left out",
        SUMS,
        r"\(last - first\) \* job.pieces;",
        "(last - first) * job.pieces - (job.pieces > 1);",
    ),
    Mutation("the next split's first product twice", SUMS, r"piece = last_piece \? 0 : piece;", ";"),
    Mutation("products' sums in one place", SUMS, r"m, n, groups,\s+product_values_\};", "m, n, groups, 0};"),
    Mutation(
        "a split has room for one product",
        SUMS,
        r"product_values_ \+= in_runs\(groups",
        "product_values_ += !product_values_ * in_runs(groups",
    ),
]
