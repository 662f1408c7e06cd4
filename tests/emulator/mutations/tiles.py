"""What every operation's products and sums are made of, proven by the operation that uses all of it."""

import torch

from tests.cases.gated_adapter import BART_TAIL, site
from tests.emulator.mutations import Mutation, of_assertions, of_case
from tests.emulator.test_gated_adapter_cuda import SITES, test_cost, test_heads_do_not_touch_each_other
from tests.emulator.test_token_sums import test_many_parts_are_shared_out, test_weight_gradients_are_sums_in_float32

OPERATION = ("gated_adapter", "mode_cores")
FILES = (
    "common/mma_tile.cuh",
    "common/fma_tile.cuh",
    "common/token_sums.cuh",
    "common/column_sums.cuh",
    "common/weight_grads.cuh",
)

ONE_BLOCK = dict(batch=(1, 20), d=24, r=16, r_g=16, granularity="large")
# Of a weight's gradient 4 by 2 tiles, since 3 by 2 are all met whichever index counts them.
SEVERAL = dict(batch=(1, 70), d=200, r=72, r_g=72, granularity="large", **BART_TAIL)
ODD = dict(batch=(1, 67), d=131, r=67, r_g=65, granularity="large", **BART_TAIL)
DEEP = dict(batch=(1, 1051), d=40, r=16, granularity="small")
BY_NAME = {case.name: case for case in SITES}

CHECKS = [
    *(of_case(site("one-block", **ONE_BLOCK), dtype) for dtype in (torch.bfloat16, torch.float32)),
    *(
        of_assertions(f"cost of {name}, {str(dtype)[6:]}", test_cost, BY_NAME[name], dtype)
        for name in ("whole", "large-ragged", "splits")
        for dtype in (torch.bfloat16, torch.float32)
    ),
    *(of_case(site("several", **SEVERAL), dtype) for dtype in (torch.bfloat16, torch.float32)),
    *(of_case(site("odd", **ODD), dtype) for dtype in (torch.bfloat16, torch.float32)),
    of_case(site("heads", batch=(1, 20), d=24, r=16, heads=2), torch.bfloat16),
    of_case(site("thin-heads", batch=(1, 20), d=24, r=24, heads=2), torch.bfloat16),
    of_assertions("heads apart", test_heads_do_not_touch_each_other, torch.bfloat16),
    *(of_case(site("deep", **DEEP), dtype) for dtype in (torch.bfloat16, torch.float32)),
    *(
        of_assertions(f"exact sums of {rows} tokens", test_weight_gradients_are_sums_in_float32, rows)
        for rows in (1024, 1030)
    ),
    *(of_assertions(f"{rank} ranks' many parts", test_many_parts_are_shared_out, rank) for rank in (47, 48)),
]

MMA, FMA, SUMS, OPERAND = "common/mma_tile.cuh", "common/fma_tile.cuh", "common/token_sums.cuh", "common/operand.cuh"
GRADS, COLUMNS = "common/weight_grads.cuh", "common/column_sums.cuh"
GRAD = "common/grad_to.cuh"

MUTATIONS = [
    # copies and stages
    Mutation("waits for one group too few", MMA, r"wait_copies<1>\(\)", "wait_copies<2>()"),
    Mutation("does not wait for the last group", MMA, r"wait_copies<0>\(\)", "wait_copies<1>()"),
    Mutation("last wait missing", MMA, r"wait_copies<0>\(\);", ";"),
    Mutation("lost commit", MMA, r"(kOperandBytes \+ next\);\s+)commit_copies\(\);", r"\1;"),
    Mutation("every chunk into the first stage", MMA, r"next = now \^ kStageBytes", "next = 0"),
    Mutation("stale stage multiplied", MMA, r"now \^= kStageBytes;", ";"),
    Mutation("stale rows multiplied", MMA, r"rows_in\(now\)", "rows_in(now ^ kStageBytes)"),
    Mutation("ragged rows as whole", MMA, r"all_ && rest >= kDepth", "rest >= kDepth"),
    Mutation("ragged depth as whole", MMA, r"all_ && rest >= kDepth", "all_"),
    Mutation(
        "every step of a whole chunk the first",
        MMA,
        r"\+\+step\) multiply_step\(step\);\n      } else",
        "++step) multiply_step(0);\n      } else",
    ),
    Mutation(
        "next chunk from the same depth",
        MMA,
        r"next_ \+= Operand::kTransposed \? kDepth \* from_.stride : kDepth;",
        ";",
    ),
    Mutation("the same value by value", MMA, r"int64_t\(chunk\) \* kDepth, depth_", "0, depth_"),
    Mutation(
        "advance of the other direction", MMA, r"kDepth \* from_.stride : kDepth;", "kDepth : kDepth * from_.stride;"
    ),
    Mutation("second pack is the first", MMA, r"of = line \+ n \* kLines", "of = line"),
    Mutation("both packs from one line", MMA, r"next_ \+ n \* gap_, true", "next_, true"),
    Mutation("both packs from one line, masked", MMA, r"next_ \+ n \* gap_, wanted", "next_, wanted"),
    Mutation(
        "both packs in one place",
        MMA,
        r"n \* kLines \* kLinePacks, next_ \+ n \* gap_, true",
        "0, next_ + n * gap_, true",
    ),
    Mutation("last step of the depth left out", MMA, r"16 \* step < rest", "16 * step + 16 < rest"),
    Mutation("the first step's packs in all", MMA, r"along_lines \? 0 : times", "along_lines ? 0 : 0 * times"),
    Mutation("the first step's lines in all", MMA, r"times \* 16 \* kLinePacks", "0 * times"),
    Mutation("last chunk not multiplied", MMA, r"chunk < chunks; \+\+chunk", "chunk < chunks - (chunks > 1); ++chunk"),
    Mutation("ragged chunk not counted", MMA, r"\(depth \+ kDepth - 1\) / kDepth", "(depth + kDepth / 2) / kDepth"),
    Mutation("operands share a stage", MMA, r"columns_in\(kOperandBytes \+ now", "columns_in(now"),
    # places
    Mutation("no swizzle", MMA, r"pack \^ line % 8", "pack"),
    Mutation("swizzle of half the lines", MMA, r"pack \^ line % 8", "pack ^ line % 4"),
    Mutation("results not exchanged", OPERAND, r"column \^ \(\(row & 7\) \+ \(row >> 1 & 3\) \* 8\)", "column"),
    Mutation("results exchanged by halves", OPERAND, r" \+ \(row >> 1 & 3\) \* 8", ""),
    Mutation("staged rows meet in a bank", FMA, r"\? kM \+ 2 :", "? kM + 1 :"),
    # fragments
    Mutation("swapped fragment registers", MMA, r"columns\[0\], columns\[1\]", "columns[1], columns[0]"),
    Mutation("fragment of the other pair", MMA, r"columns\[2\], columns\[3\]", "columns[0], columns[1]"),
    Mutation(
        "rows' matrices in the other order",
        MMA,
        r"first_row \+ lane % 16 / 8 \* 8, lane / 16 \* 8\)",
        "first_row + lane / 16 * 8, lane % 16 / 8 * 8)",
    ),
    Mutation("sums of one pair twice", MMA, r"sum\[2 \* pair \+ 1\]", "sum[2 * pair]"),
    Mutation("turned operand not turned", MMA, r"load_matrices<B::kTransposed>", "load_matrices<false>"),
    Mutation("swapped result rows and columns", MMA, r"n \* 8 \+ e % 2,\s+e / 2 \*", "n * 8 + e / 2, e % 2 *"),
    Mutation("warp's rows by its columns", MMA, r"warp / 2 \* kWarpRows", "warp % 4 * kWarpRows"),
    # tails
    Mutation("missing tail mask of rows", MMA, r"end <= rest && of < from_.count;", "end <= rest;"),
    Mutation("missing tail mask of packs", MMA, r"of < rest && end <= from_.count :", "of < rest :"),
    Mutation("depth one too far in whole packs", MMA, r"of < rest && end", "of <= rest && end"),
    Mutation("pack past the depth", MMA, r": end <= rest &&", ": end <= rest + kPack &&"),
    Mutation("ragged depth in whole packs", MMA, r": depth % kPack == 0\)", ": true)"),
    Mutation("ragged width in whole packs", MMA, r"all_ \|\| from_.count % kPack == 0", "true"),
    Mutation("missing tail mask of values", MMA, r"line < lines && pack \* kPack \+ u < length", "line < lines"),
    Mutation("missing alignment test of rows", OPERAND, r"(\(data\) % 16 == 0) && stride % [^;]*", r"\1"),
    Mutation("missing alignment test of the base", OPERAND, r"reinterpret_cast<uintptr_t>\(data\) % 16 == 0 && ", ""),
    Mutation("whole packs value by value", MMA, r"if \(!whole_\)", "if (true)"),
    Mutation("depth one too far", FMA, r"k0 \+ k < depth \?", "k0 + k <= depth ?"),
    Mutation(
        "missing tail mask of the depth", FMA, r"k0 \+ k < depth \? from\(i, k0 \+ k\) : C\(0\)", "from(i, k0 + k)"
    ),
    Mutation("depth one short", FMA, r"k < kDepth; \+\+k\)", "k < kDepth - 1; ++k)"),
    Mutation("missing tail mask of vectors", OPERAND, r"if \(i >= count\) return Compute<T>\(0\);", ""),
    Mutation("turned stride", OPERAND, r"i \+ k \* stride : i \* stride \+ k", "i * stride + k : i * stride + k"),
    # sums over tokens
    Mutation(
        "whole split one token short",
        GRADS,
        r"all.rows - begin : all.split_rows;",
        "all.rows - begin : all.split_rows - (all.rows % 512 == 0);",
    ),
    Mutation(
        "splits rounded to the storage type",
        GRADS,
        r"write\(to, Tile::result\(0, i, j\)\);",
        r"{ T rounded; store(rounded, Tile::result(0, i, j)); write(to, load(rounded)); }",
    ),
    Mutation(
        "last split one token short",
        GRADS,
        r"all.rows - begin < all.split_rows \? all.rows - begin",
        "all.rows - begin < all.split_rows ? all.rows - begin - 1",
    ),
    Mutation(
        "splits overlap",
        GRADS,
        r"int64_t begin = block_y\(\) \* all.split_rows;",
        "int64_t begin = block_y() * (all.split_rows - 1);",
    ),
    Mutation(
        "columns' splits overlap",
        COLUMNS,
        r"begin = split \* all.split_rows;\n  int64_t end",
        "begin = split * (all.split_rows - 1);\n  int64_t end",
    ),
    Mutation(
        "splits' sums in one place",
        GRADS,
        r"all.sums \+ block_y\(\) \* all.split_sums \+ grad.offset",
        "all.sums + grad.offset",
    ),
    Mutation("off by one in the reduction", SUMS, r"more = \(last - first\)", "more = (last - first - 1)"),
    Mutation("reduction skips the first part", SUMS, r"from = job.from \+ first \*", "from = job.from + (first + 1) *"),
    Mutation(
        "parts of the first eight", SUMS, r"job.pieces; more > 0; more -= kAhead", "job.pieces; more > 0; more = 0"
    ),
    Mutation("parts past the last", SUMS, r"if \(n >= more\) break;\n +part", "part"),
    Mutation(
        "whole runs at a ragged end",
        SUMS,
        r"if \(left >= kRun && bits % 16 == 0\)\n    add_parts",
        "if (bits % 16 == 0)\n    add_parts",
    ),
    Mutation("whole runs of odd parts", SUMS, r" && bits % 16 == 0\)\n    add_parts", ")\n    add_parts"),
    Mutation(
        "every warp has all parts", SUMS, r"\(job.parts \+ kWarps - 1\) / kWarps : job.parts", "job.parts : job.parts"
    ),
    Mutation("every warp has the first parts", SUMS, r"many \? warp \* each : 0", "0"),
    Mutation("a warp's parts left out", SUMS, r"other = 1; other < kWarps", "other = 2; other < kWarps"),
    Mutation(
        "last parts of a warp too many", SUMS, r"job.parts - first < each \? job.parts : first", "false ? 0 : first"
    ),
    Mutation("second group reads the first's columns", GRADS, r"group \* grad.n \+ n, b_width", "n, b_width"),
    Mutation(
        "tile's rows by its columns",
        GRADS,
        r"tile / column_tiles % row_tiles",
        "tile % row_tiles",
    ),
    Mutation("missing mask of the weight's tail", GRADS, r"if \(j >= tile.columns.count\) return;", ""),
    Mutation(
        "missing mask of the weight's rows",
        GRADS,
        r"tile.rows.count < Tile::kM \? static_cast<int>\(tile.rows.count\) : ",
        "",
    ),
    Mutation("rows of a weight one apart", GRADS, r"to \+= kStep \* tile.grad.n", "to += tile.grad.n"),
    Mutation("tokens twice", COLUMNS, r"value \+= kStep \* job.width", "value += (kStep - 1) * job.width"),
    Mutation("a token too few", COLUMNS, r"\(end - t \+ kStep - 1\)", "(end - t)"),
    Mutation("tokens past the split", COLUMNS, r"if \(n >= more\) break;\n +by", "by"),
    Mutation("tokens of the first turn", COLUMNS, r"kStep\); more > 0; more -= kAhead", "kStep); more > 0; more = 0"),
    Mutation("weights of the first turn", COLUMNS, r"if \(weight\) weight \+= kAhead \* kStep;", ""),
    Mutation("whole runs of odd widths", COLUMNS, r"\| job.width \* sizeof\(T\);", ";"),
    Mutation("a warp's sum left out", COLUMNS, r"k = 0; k < kWarps", "k = 1; k < kWarps"),
    Mutation("sum of half a warp", COLUMNS, r"mask < 32", "mask < 16"),
    Mutation("columns of the first lane", COLUMNS, r"first \+ lane \* kRun", "first"),
    Mutation("warps' sums meet in a bank", COLUMNS, r"kRun == 8 \? 12 : 8", "8"),
    Mutation("column past the width", COLUMNS, r"kColumns && c < left", "kColumns"),
    Mutation("columns beside products the first", COLUMNS, r"block % blocks, block / blocks", "0, block / blocks"),
    Mutation("splits beside products the first", COLUMNS, r"block % blocks, block / blocks", "block % blocks, 0"),
    Mutation(
        "a block beside products too many", COLUMNS, r"if \(block < blocks \* static_cast<int>\(all.splits\)\) ", ""
    ),
    Mutation(
        "columns' blocks beside products twice",
        GRADS,
        r"\* all.splits \+ block_y\(\)\);\n  const GradTile<T, false",
        "* all.splits);\n  const GradTile<T, false",
    ),
    Mutation("lost weight of a token", COLUMNS, r"weight \? read\(weight \+ n \* kStep\)", "false ? C(0)"),
    Mutation("every job the first", SUMS, r"block_x\(\) >= all.first_block\[number \+ 1\]", "false"),
    Mutation("narrow gradient stored wide", GRAD, r"if \(narrow\) return put_narrow", "if (false) return put_narrow"),
    Mutation("narrow run past the end", GRAD, r"left >= kRun && reinterpret", "reinterpret"),
    Mutation(
        "narrow run that begins anywhere",
        GRAD,
        r" && reinterpret_cast<uintptr_t>\(to\) % sizeof\(HalfPack<T>\) == 0",
        "",
    ),
    Mutation(
        "narrow run's pairs exchanged", GRAD, r"\{pair_of\((.*?)\), pair_of\((.*?)\)\};", r"{pair_of(\2), pair_of(\1)};"
    ),
    Mutation("narrow run's last value left out", GRAD, r"if \(j < left\)", "if (j + 1 < left)"),
    Mutation("more splits than the formula", "common/launch.cuh", r"\(tokens \+ 511\) / 512", "(tokens + 255) / 256"),
]
