"""What tiles of 128 x 32 n are made of, and the launches of the site that take them."""

import torch

from tests.cases.gated_adapter import BART_TAIL, site
from tests.emulator.mutations import Mutation, of_case, under

OPERATION = "gated_adapter"
FILES = ("common/wide_tile.cuh",)

WHOLE = site("whole", batch=(1, 192), d=192, r=96, r_g=64, granularity="large")
RAGGED = site("ragged", batch=(1, 150), d=136, r=104, r_g=40, granularity="large", **BART_TAIL)
ODD = site("odd", batch=(1, 131), d=131, r=67, r_g=5, granularity="large", **BART_TAIL)
HEADS = site("heads", batch=(1, 20), d=48, r=24, heads=3, granularity="middleY")
ODD_PLACE = site("odd-place", batch=(1, 20), d=7, d_x=8, r=9, placement="parallel")

CHECKS = [
    under(of_case(case, torch.bfloat16), PETX_CUDA_WIDE=parts, PETX_CUDA_SPLITS="3")
    for case, parts in (
        (HEADS, "2"),
        (ODD_PLACE, "2"),
        (RAGGED, "3"),
        (RAGGED, "2"),
        (ODD, "3"),
        (ODD, "2"),
        (WHOLE, "3"),
    )
]

WIDE, GRADS, BLOCK = "common/wide_tile.cuh", "common/weight_grads.cuh", "common/row_block.cuh"
FORWARD, BACKWARD = "gated_adapter/forward.cu", "gated_adapter/grads.cuh"

MUTATIONS = [
    # copies and stages
    Mutation("waits for one group too few", WIDE, r"wait_copies<kStages - 2>", "wait_copies<kStages - 1>"),
    Mutation("stale stage multiplied", WIDE, r"in\(now \* 16\)", "in(next * 16)"),
    Mutation("stages not in turns", WIDE, r"now = next_stage\(now\), ", ""),
    Mutation("filled stages not in turns", WIDE, r", next = next_stage\(next\)", ""),
    Mutation("last chunk not multiplied", WIDE, r"chunk < chunks; \+\+chunk", "chunk < chunks - 1; ++chunk"),
    Mutation("last chunk not brought", WIDE, r"chunk \+ kStages - 1 < chunks", "chunk + kStages < chunks"),
    Mutation("ragged chunk not counted", WIDE, r"\(depth \+ kDepth - 1\) / kDepth", "depth / kDepth"),
    Mutation(
        "operands share a stage",
        WIDE,
        r"first.stage\(chunk, stage \+ kRowParts \* kPartPacks\)",
        "first.stage(chunk, stage)",
    ),
    Mutation("next chunk from the same depth", WIDE, r"next_ \+= kTransposed \? kDepth \* from_.stride : kDepth;", ";"),
    Mutation("every part the first", WIDE, r"next_ \+ part \* gap_, true", "next_, true"),
    Mutation("every part the first, masked", WIDE, r"next_ \+ part \* gap_, row", "next_, row"),
    Mutation("every part the first, by values", WIDE, r"next_ \+ part \* gap_ \+ u", "next_ + u"),
    # depth, places and fragments
    Mutation("last step of the depth left out", WIDE, r"step >= steps", "step + 1 >= steps"),
    Mutation("steps of the depth rounded down", WIDE, r"kDepth \+ 15\) / 16", "kDepth) / 16"),
    Mutation("no exchange of straight packs", WIDE, r"line \* 8 \+ \(pack \^ line % 8\)", "line * 8 + pack"),
    Mutation("no exchange of turned packs", WIDE, r"pack \^ line / 2 % 4", "pack"),
    Mutation("turned packs exchanged by each line", WIDE, r"pack \^ line / 2 % 4", "pack ^ line % 4"),
    Mutation("second rows are the first", WIDE, r"step \* 64 : half \* 128", "step * 64 : 0"),
    Mutation(
        "second turned rows are the first", WIDE, r"kTransposed \? 2 \* half : 2 \* step", "kTransposed ? 0 : 2 * step"
    ),
    Mutation("every step the first", WIDE, r"Operand::kTransposed \? 0 : 2 \* step", "0"),
    Mutation("every turned step the first", WIDE, r"Operand::kTransposed \? step \* 64 : 0", "0"),
    Mutation(
        "columns of the first part", WIDE, r"part \* kPartPacks \+ \(Operand::kTransposed", "(Operand::kTransposed"
    ),
    Mutation("swapped fragment registers", WIDE, r"columns\[0\], columns\[1\]", "columns[1], columns[0]"),
    Mutation("fragment of the other pair", WIDE, r"columns\[2\], columns\[3\]", "columns[0], columns[1]"),
    Mutation(
        "both warps have the same columns",
        WIDE,
        r"begin_of<Operand::kTransposed>\(column \+ ",
        "begin_of<Operand::kTransposed>(",
    ),
    # tails
    Mutation("missing mask of the depth", WIDE, r"last < rest \? from_.count : 0", "from_.count"),
    Mutation("missing mask of the rows", WIDE, r"row \+ part \* kPart < rows", "rows > 0"),
    Mutation("ragged rows as whole", WIDE, r"all_ && rest >= kDepth", "rest >= kDepth"),
    Mutation("ragged depth as whole", WIDE, r"all_ && rest >= kDepth", "all_"),
    Mutation("ragged depth in whole packs", WIDE, r": depth % kPack == 0\)", ": true)"),
    Mutation("ragged width in whole packs", WIDE, r"all_ \|\| from_.count % kPack == 0", "true"),
    Mutation("alignment not asked", WIDE, r"whole_ = from_.aligned\(\) && ", "whole_ = "),
    Mutation("missing mask of values' lines", WIDE, r"line < lines && first \+ u < length", "first + u < length"),
    Mutation("missing mask of values", WIDE, r"line < lines && first \+ u < length", "line < lines"),
    # results
    Mutation("results' rows by halves", WIDE, r"row \+ half \* 8, column", "row + half % 2 * 8, column"),
    Mutation(
        "results' columns of the first part",
        WIDE,
        r"column \+ n / 2 \* kPart \+ n % 2 \* 8, of",
        "column + n % 2 * 8, of",
    ),
    Mutation("left rows in one place", WIDE, r"half \* 8 \* kN \+ n / 2 \* kPart", "n / 2 * kPart"),
    Mutation("left columns in one place", WIDE, r"half \* 8 \* kN \+ n / 2 \* kPart", "half * 8 * kN"),
    Mutation("the first half twice", BLOCK, r"Wide::result\(half \* Tile::kM \+ row", "Wide::result(row"),
    Mutation("columns of a narrow tile", FORWARD, r"put_down\(of, Wide::kN", "put_down(of, Tile::kN"),
    Mutation(
        "columns of a narrow tile backward", BACKWARD, r"put_hidden_grad\(of, Wide::kN", "put_hidden_grad(of, Tile::kN"
    ),
    Mutation("rows of the first half down", FORWARD, r"2 \* block_x\(\) \+ half", "2 * block_x()"),
    Mutation("one half left out", FORWARD, r"half < 2; \+\+half", "half < 1; ++half"),
    # gradients of weights
    Mutation("never turned", GRADS, r"return wide && n > m;", "return false;"),
    Mutation("turned sums not turned", GRADS, r"tile.turned \? column \* n \+ row : ", ""),
    Mutation("second of turned sums beside the first", GRADS, r"\(tile.turned \? n : 1\)", "1"),
    Mutation("pairs of an odd width", GRADS, r" && n % 2 == 0 &&", " &&"),
    Mutation("pairs off alignment", GRADS, r" && reinterpret_cast<uintptr_t>\(tile.to\) % 8 == 0", ""),
    Mutation("missing mask of wide rows", GRADS, r"if \(row >= tile.rows.count\) return;", ""),
    Mutation("missing mask of pairs", GRADS, r"if \(column < tile.columns.count\) write_pair", "write_pair"),
    Mutation("missing mask of the first", GRADS, r"if \(column < tile.columns.count\) write\(", "write("),
    Mutation("missing mask of the second", GRADS, r"if \(column \+ 1 < tile.columns.count\) ", ""),
]
