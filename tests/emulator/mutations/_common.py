"""Mistakes in sources that several operations share, each in the lists of the operations whose kernels run them."""

from tests.emulator.mutations import Mutation

ROW_BLOCK, DROPOUT = "common/row_block.cuh", "common/dropout.cuh"

MASK = [
    Mutation("dropout does not scale up", DROPOUT, r"C\(1.0 / \(1.0 - p\)\)", "C(1)"),
    Mutation("dropout one word off", DROPOUT, r"if \(element & 1\) words.template skip<1>\(\);", ""),
    Mutation("dropout two words off", DROPOUT, r"if \(element & 2\) words.template skip<2>\(\);", ""),
    Mutation("one counter for all of a run", DROPOUT, r"element / 4 \+ n\)", "element / 4)"),
    Mutation("run's last counter is its first", DROPOUT, r"element / 4 \+ kCounters\)", "element / 4)"),
    Mutation("position in 32 bits", DROPOUT, r"draw\(uint64_t element", "draw(uint32_t element"),
    Mutation(
        "seed's high word dropped",
        DROPOUT,
        r"static_cast<uint64_t>\(read\(seed\)\)",
        "static_cast<uint32_t>(read(seed))",
    ),
]

# Of whom asks for factors, and not which values are kept.
FACTORS = [Mutation("dropout's complement", DROPOUT, r">= least \? keep", "< least ? keep")]

ROWS = [
    Mutation(
        "rows past the end take part",
        ROW_BLOCK,
        r"if \(!valid\(\)\) return;(\s+#pragma unroll 1\s+for \(int c)",
        r"\1",
    ),
    Mutation(
        "last rows of the wrong block",
        ROW_BLOCK,
        r"all_rows - first < Tile::kM \? all_rows - first : Tile::kM",
        "Tile::kM",
    ),
    Mutation("run read one value too far", ROW_BLOCK, r"j < left \? load", "j <= left ? load"),
    Mutation("run's last value not written", ROW_BLOCK, r"if \(j < left\) write", "if (j + 1 < left) write"),
    Mutation("whole packs at a ragged end", ROW_BLOCK, r"left >= kRun && (reinterpret_cast<uintptr_t>\(from\))", r"\1"),
    Mutation("whole packs written at one", ROW_BLOCK, r"left >= kRun && (reinterpret_cast<uintptr_t>\(to\))", r"\1"),
    Mutation("missing alignment test", ROW_BLOCK, r" && reinterpret_cast<uintptr_t>\(to\) % 16 == 0", ""),
    Mutation("missing alignment test in reads", ROW_BLOCK, r" && reinterpret_cast<uintptr_t>\(from\) % 16 == 0", ""),
]

# Of whom takes sums over the columns of a row.
ROW_SUMS = [
    Mutation("sum of two threads instead of four", ROW_BLOCK, r"value \+= shuffle_xor\(value, 1\);", ""),
    Mutation("sum of the wrong four", ROW_BLOCK, r"shuffle_xor\(value, 2\)", "shuffle_xor(value, 4)"),
]

# Of whom lets several blocks share the column tiles of a block of rows.
SHARES = [
    Mutation("a block's last tile left out", ROW_BLOCK, r"n < left; \+\+n", "n < left - 1; ++n"),
    Mutation("a block's first tile alone", ROW_BLOCK, r"n < shares.each && n < left", "n < 1 && n < left"),
    Mutation("every share the first", ROW_BLOCK, r"block_y\(\) \* shares.each", "0"),
]
