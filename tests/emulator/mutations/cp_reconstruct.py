"""Forward and backward of PETAL's adapted weights written out."""

import torch

from tests.cases.cp_reconstruct import CASES, WIDE
from tests.emulator.mutations import Mutation, Turned, of_assertions, of_case
from tests.emulator.test_cp_reconstruct_cuda import (
    test_a_block_takes_several_tiles_of_a_large_call,
    test_groups_of_modules_whose_updates_are_stored,
    test_launches_that_nobody_needs_are_left_out,
    test_more_modules_than_a_table_holds,
    test_sixteen_bit_updates_are_rounded_once,
)
from tests.emulator.test_grids import test_rows_lie_on_the_first_axis

OPERATION = "cp_reconstruct"
FILES = tuple(f"cp_reconstruct/{name}" for name in ("block.cuh", "forward.cu", "backward.cu", "finish.cuh"))

BY_NAME = {case.name: case for case in [*CASES, *WIDE]}
NAMES = """soft sigmoid-each soft-each none-scaled diagonal-soft diagonal-sigmoid odd odd-diagonal many wide-diagonal
wide-tall wide-tall-diagonal wide-flat-none wide-none wide""".split()

CHECKS = [
    *(of_case(BY_NAME[name], dtype) for name in NAMES for dtype in (torch.float32, torch.bfloat16)),
    of_assertions("rounded once", test_sixteen_bit_updates_are_rounded_once, "full"),
    *(
        of_assertions(f"{needed}'s gradient alone", test_launches_that_nobody_needs_are_left_out, needed, launches)
        for needed, launches in (("u", 4), ("threshold", 3))
    ),
    of_assertions("blocks of several tiles", test_a_block_takes_several_tiles_of_a_large_call, torch.float32),
    of_assertions("more modules than a table holds", test_more_modules_than_a_table_holds),
    of_assertions("grids of many rows", test_rows_lie_on_the_first_axis, OPERATION),
    *(
        of_assertions(f"groups of {modules} modules", test_groups_of_modules_whose_updates_are_stored, modules, rank)
        for modules, rank in ((0, 5), (2, 5), (2, 70))
    ),
]

TILE, FORWARD, BACKWARD = "cp_reconstruct/block.cuh", "cp_reconstruct/forward.cu", "cp_reconstruct/backward.cu"
FINISH = "cp_reconstruct/finish.cuh"

MUTATIONS = [
    # A and the update
    Mutation("lost low part of A", TILE, r" \+ Tile::result\(1, row, column\)", ""),
    Mutation("A's low part from its high one", TILE, r"values\[j\] -= load\(rounded.value\[j\]\)", "values[j] = 0"),
    Mutation("diagonal of the first module", TILE, r"p.cores\) \+ module_ \* p.rank;", "p.cores);"),
    Mutation("core of the first module", TILE, r" \+ module_ \* p.rank \* p.rank;", ";"),
    Mutation("turned core", TILE, r"Rows<T>\{core \+ begin \* p.rank,", "Columns<T>{core + begin,"),
    Mutation("last rank left out", TILE, r"(\{mixed.high, p.rank, rows\}, u), p.rank\)", r"\1, p.rank - (p.rank > 1))"),
    Mutation("rows past the end mixed", TILE, r"if \(row >= rows\) return;", ""),
    Mutation("ranks past the end mixed", TILE, r"p.rank \+ j, values, p.rank - j\)", "p.rank + j, values, kPack)"),
    Mutation("a row's first packs alone", TILE, r"j < end; j \+= kSharers \* kPack", "j < end; j = end"),
    Mutation(
        "last rows of the wrong block", TILE, r"p.d_out - first < Tile::kM \? p.d_out - first : Tile::kM", "Tile::kM"
    ),
    Mutation("pack past the row's end", TILE, r"left < kPack \? static_cast<int>\(left\) : kPack", "kPack"),
    Mutation("missing alignment test", "common/kernel.cuh", r" && reinterpret_cast<uintptr_t>\(pack\) % 16 == 0", ""),
    # the gate
    Mutation("threshold of the first module", TILE, r"p.threshold_of\(module\)", "0"),
    Mutation("temperature not inverted", TILE, r"C\(1 / p.temperature\)", "C(p.temperature)"),
    Mutation("lost scale", TILE, r"gated<kind>\(p.scale \* update", "gated<kind>(update"),
    Mutation("lost scale in the slopes", TILE, r"gate_slopes<kind>\(p.scale \* update", "gate_slopes<kind>(update"),
    # long sums
    Mutation("long sum of one piece", TILE, r"depth > 0; depth -= kDepth", "depth > 0; depth = 0"),
    Mutation("second piece of the wrong vectors", TILE, r"A::kTransposed \? a.stride : 1", "a.stride"),
    Mutation("last piece too long", TILE, r"depth < kDepth \? depth : kDepth", "kDepth"),
    # the forward
    Mutation(
        "weight not added", FORWARD, r"load\(values\[n\].value\[j\]\) \+ tile.template gate", "tile.template gate"
    ),
    Mutation(
        "weight of the first module",
        FORWARD,
        r"table.weights\[block_y\(\)\](\);\s+T\* out = [^;]+;\s+int64_t begin)",
        r"table.weights[0]\1",
    ),
    Mutation(
        "factors of the table's first modules", FORWARD, r"first_module \+ block_y\(\), row_tile", "block_y(), row_tile"
    ),
    Mutation("blocks' A in one place", FORWARD, r"block_y\(\) \* tiles_of\(p.d_out\) \* groups \+ ", ""),
    Mutation("a block makes one tile", FORWARD, r"end = begin \+ tiles_a_block \* 64", "end = begin + 64"),
    Mutation("blocks' tiles overlap", FORWARD, r"begin = group \* tiles_a_block \* 64", "begin = group * 64"),
    Mutation(
        "last block left out", "common/launch.cuh", r"count = \(tiles \+ each - 1\) / each", "count = tiles / each"
    ),
    Turned(
        "rows on the grid's second axis",
        FORWARD,
        r"plan_\.blocks_a_module\(\), modules\(first\), threads",
        "modules(first), plan_.blocks_a_module(), threads",
    ),
    Mutation(
        "workspace a row short", FORWARD, r"blocks_a_module\(\) \* Tile::kM;", "blocks_a_module() * (Tile::kM - 1);"
    ),
    # the backward
    Mutation("lost slope", BACKWARD, r"d \* slopes.value\)", "d)"),
    Mutation("swapped slopes", BACKWARD, r"d \* slopes.threshold", "d * slopes.value"),
    Mutation("dA in the first module's place", BACKWARD, r"width \+ module \* p.rank \+ begin", "width + begin"),
    Mutation("every chunk of ranks writes the threshold", BACKWARD, r" \|\| chunk != 0\)", ")"),
    Mutation(
        "threshold of half a warp",
        BACKWARD,
        r"mask = 16; (mask[^\n]+\n  sync_block\(\);  // of result 0)",
        r"mask = 8; \1",
    ),
    Mutation("a warp's threshold left out", BACKWARD, r"int warp = 1; ([^\n]+Tile::result)", r"int warp = 2; \1"),
    Mutation("missing mask of the last columns", BACKWARD, r"p.d_in - from < piece \? p.d_in - from : piece", "piece"),
    Mutation("split one item short", BACKWARD, r"item < end; \+\+item", "item < end - (end > 20); ++item"),
    Mutation("tables' splits in one place", BACKWARD, r"first_split \+= splits.count", "first_split += 0"),
    # D that is stored
    Mutation(
        "D of every module in one place",
        BACKWARD,
        r"\(block_y\(\) \* p.d_out \+ first\) \* to.stride",
        "first * to.stride",
    ),
    Mutation(
        "D of every block of rows in one place",
        BACKWARD,
        r"\(block_y\(\) \* p.d_out \+ first\)",
        "(block_y() * p.d_out)",
    ),
    Mutation("D of every tile in one place", BACKWARD, r"made \+ column, stride", "made, stride"),
    Mutation("D's rows of the next module overwritten", BACKWARD, r"if \(place.row < tile.rows\) write", "write"),
    Mutation("every chunk of ranks stores D", BACKWARD, r"to.stored && chunk == 0", "to.stored"),
    Mutation(
        "every split from the first row", BACKWARD, r"row = block_y\(\) \* split_items \* 64", "row = 0 * split_items"
    ),
    Mutation("rows past a split's end", BACKWARD, r"end \* 64 < rows \? end \* 64 - row : rows - row", "rows - row"),
    Mutation("rows past the last", BACKWARD, r"end \* 64 < rows \? end \* 64 - row : rows - row", "end * 64 - row"),
    Mutation("A of the first group", BACKWARD, r"\(first_module \* p.d_out \+ row\)( \* p.rank \+ begin)", r"row\1"),
    Mutation("D made again beside the stored one", BACKWARD, r"    end = 0;\n", ""),
    # what is left
    Mutation("first split left out", FINISH, r"split = 0; split < splits_", "split = splits_ > 1; split < splits_"),
    Mutation("lost scale in dU", FINISH, r"0\).put\(e, sum \* p.scale", "0).put(e, sum"),
    Mutation("lost scale in dV and dM", FINISH, r"sum.value\(n\) \* p.scale", "sum.value(n)"),
    Mutation("lost scale in a diagonal's dV", FINISH, r"1\).put\(e, sum \* p.scale", "1).put(e, sum"),
    Mutation("lost scale in a diagonal's dM", FINISH, r"put\(i, sum \* p.scale", "put(i, sum"),
    Mutation(
        "dM of the first module's dA", FINISH, r"from_.dmixed \+ module \* p.rank \+ first", "from_.dmixed + first"
    ),
    Mutation("dM of the first module's place", FINISH, r"from\(module \* p.rank \* p.rank\)", "from(0)"),
    Mutation("shared threshold of the first module", FINISH, r"p.thresholds == 1 \? p.modules : 1", "1"),
    Mutation("threshold's items of the first lane", FINISH, r"mask = 16; mask", "mask = 0; mask"),
    Mutation("threshold's items of one turn", FINISH, r"i < items; i \+= 32", "i < items && i < 32; i += 32"),
    Mutation("every warp the first threshold", FINISH, r"kThresholds \+ thread_index\(\) / 32", "kThresholds"),
    Mutation("diagonal's rows twice", FINISH, r"first \+ kRows < p.d_out \? first \+ kRows : p.d_out", "p.d_out"),
    Mutation("a warp of the diagonal left out", FINISH, r"int other = 1; other", "int other = 2; other"),
]
