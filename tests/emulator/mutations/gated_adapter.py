"""Forward and backward of the VL-PET site."""

import torch

from tests.cases import BY_NAME
from tests.emulator.mutations import Mutation, of_assertions, of_case
from tests.emulator.test_gated_adapter_cuda import SITES, test_cost, test_dropout_mask

OPERATION = "gated_adapter"
FILES = ("gated_adapter/forward.cu", "gated_adapter/backward.cu", "gated_adapter/block.cuh")

NAMES = """large-bart middleX-bart small-masked middleY-sigmoid parallel-large-wide-x parallel-large pair odd-pair
large-rms middleX-original small-masked-original large-t5 large-exact odd large-unbiased splits-small""".split()
SITE_BY_NAME = {case.name: case for case in SITES}

CHECKS = [
    *(of_case(BY_NAME["gated_adapter", name], dtype) for name in NAMES for dtype in (torch.float32, torch.bfloat16)),
    of_assertions("cost of large-ragged", test_cost, SITE_BY_NAME["large-ragged"], torch.bfloat16),
    of_assertions("cost of middleY", test_cost, SITE_BY_NAME["middleY"], torch.float32),
    of_assertions("dropout mask", test_dropout_mask, 0.1, torch.float32),
]

SITE, FORWARD, BACKWARD = "gated_adapter/block.cuh", "gated_adapter/forward.cu", "gated_adapter/backward.cu"
ROWS = "common/row_block.cuh"

MUTATIONS = [
    Mutation("lost scale", SITE, r"C\(p.scale\) \* gate \* s", "gate * s"),
    Mutation("dropout does not scale up", SITE, r"C\(1.0 / \(1.0 - p.dropout\)\)", "C(1)"),
    Mutation("dropout's complement", SITE, r">= threshold_", "< threshold_"),
    Mutation("dropout one word off", SITE, r"element & 2 \? high : low", "element & 2 ? low : high"),
    Mutation(
        "dropout by row only",
        SITE,
        r"static_cast<uint64_t>\(token\) \* p.d \+ column",
        "static_cast<uint64_t>(token) * (p.d - 1) + column",
    ),
    Mutation(
        "stale counter of the dropout", SITE, r"if \(element / 4 != counter_\)", "if (element / 8 != counter_ / 2)"
    ),
    Mutation("rows past the end", ROWS, r"if \(!valid\(\)\) return;(\s+#pragma unroll 1\s+for \(int run)", r"\1"),
    Mutation("one column too far", ROWS, r"kRun && begin \+ c < end", "kRun && begin + c <= end"),
    Mutation("sum of two threads instead of four", ROWS, r"value \+= shuffle_xor\(value, 1\);", ""),
    Mutation("sum of the wrong four", ROWS, r"shuffle_xor\(value, 2\)", "shuffle_xor(value, 4)"),
    Mutation("padding counts", SITE, r"!only_counting \|\| counts\(t\)", "true"),
    Mutation("mean by the length", SITE, r"if \(counts\(t\)\) count \+= C\(1\);", "count += C(1);"),
    Mutation("mean of another sample", SITE, r"token / p.length \* p.length", "token / (p.length + 1) * p.length"),
    Mutation("mean of all but the last token", SITE, r"t < begin \+ p.length", "t < begin + p.length - 1"),
    Mutation("second head multiplies the first's rank", SITE, r"head \* rank\)", "0)"),
    Mutation("gate from the adapter's rows", SITE, r"block_rows\(hidden.gate_a, p.r_g\)", "block_rows(hidden.a, p.r)"),
    Mutation("lost bias", SITE, r" \+ at_or_zero<T>\(p.up_bias, column\)", ""),
    Mutation("lost residual", SITE, r"return p.residual \?", "return false ?"),
    Mutation(
        "last rows of the wrong block", ROWS, r"all_rows - first < Tile::kM \? all_rows - first : Tile::kM", "Tile::kM"
    ),
    Mutation(
        "small gate reads the first half for S", SITE, r"Granularity::small \? p.d : 0", "Granularity::small ? 0 : 0"
    ),
    Mutation(
        "gelu of the unrounded z",
        FORWARD,
        r"activate\(p.activation, at<T>\(z, i\)\)",
        "activate(p.activation, Tile::result(0, row, c))",
    ),
    Mutation("mean not subtracted", FORWARD, r"\(y - mean_\) \* rstd_ \*", "y * rstd_ *"),
    Mutation("norm without eps", FORWARD, r" \+ C\(p.eps\)", ""),
    Mutation("deviations of the old mean", FORWARD, r"apart \* \(y - mean_\)", "apart * apart"),
    Mutation("means not joined", FORWARD, r" \+ seen_ \* apart \* apart", ""),
    Mutation(
        "norm of rms subtracts the mean", FORWARD, r"p.norm == Norm::layer \? this->row_sum", "true ? this->row_sum"
    ),
    Mutation(
        "every sharer writes the gate",
        FORWARD,
        r"if \(sharer == 0 && this->valid\(\)\) write\(static_cast<C\*>\(p.token_gate\)",
        "if (this->valid()) write(static_cast<C*>(p.token_gate)",
    ),
    Mutation(
        "one block of rows too few",
        "gated_adapter/plan.h",
        r"tiles_along\(p.rows\)",
        "tiles_along(p.rows - 1)",
    ),
    Mutation("small in one launch", FORWARD, r"if \(!plan_.two_steps\) return", "return"),
    Mutation(
        "missing dropout scale in the backward", BACKWARD, r"dy \*= C\(p.scale\) \* dropped;", "dy *= C(p.scale);"
    ),
    Mutation("missing scale in the backward", BACKWARD, r"dy \*= C\(p.scale\) \* dropped;", "dy *= dropped;"),
    Mutation(
        "residual after the scale",
        BACKWARD,
        r"C dresidual = p.residual \? dy : C\(0\);",
        "C dresidual = p.residual ? dy * C(p.scale) : C(0);",
    ),
    Mutation("lost projection on the norm", BACKWARD, r" - hat \* along_\)", ")"),
    Mutation("lost mean in the norm", BACKWARD, r"dy - mean_part_ - hat", "dy - hat"),
    Mutation(
        "gate's slope of one sign", BACKWARD, r"dgate \* channel \* \(C\(1\) - channel\)", "dgate * channel * channel"
    ),
    Mutation("lost slope of the token gate", BACKWARD, r"dgate \* sigma \* \(C\(1\) - sigma\)", "dgate * sigma"),
    Mutation("padding's gate has a gradient", BACKWARD, r"if \(!this->counts\(token\)\) dgate = C\(0\);", ""),
    Mutation(
        "gradient through the gate lost",
        BACKWARD,
        r"if \(p.gate_input == GateInput::modified\) ds \+=",
        "if (false) ds +=",
    ),
    Mutation("gate's gradient to h lost", BACKWARD, r"if \(through_gate\) dh \+=", "if (false) dh +="),
    Mutation("gate's gradient to x lost", BACKWARD, r"dresidual \+= dlogit_ \* at<T>\(p.gate_weight, column\);", ";"),
    Mutation("lost slope of gelu", BACKWARD, r"Tile::result\(0, row, c\) \* slope", "Tile::result(0, row, c)"),
    Mutation(
        "slope of the other gelu",
        BACKWARD,
        r"p.activation == Activation::gelu \? gelu_derivative",
        "p.activation != Activation::gelu ? gelu_derivative",
    ),
    Mutation("dz of the first head only", BACKWARD, r"\+ head \* width \* rank \+ begin", "+ begin"),
    Mutation("x begun from nothing", BACKWARD, r"begun \? at<T>\(g.dx, i\) \+ product : product", "product"),
    Mutation("column sums of all 64 rows", BACKWARD, r"i < this->rows; \+\+i", "i < Tile::kM; ++i"),
    Mutation(
        "column sums of the other slot",
        BACKWARD,
        r"sum \+= Tile::result\(slot, i, c\)",
        "sum += Tile::result(1 - slot % 2, i, c)",
    ),
    Mutation(
        "adapter's sum from the gate's",
        BACKWARD,
        r"sums_.column\(g.up_bias, to_.ds",
        "sums_.column(g.up_bias, large ? to_.dgate : to_.ds",
    ),
    Mutation(
        "token gate's bias by its weight",
        BACKWARD,
        r"sums_.column\(g.gate_bias, nullptr, to_.dlogit, 1\)",
        "sums_.column(g.gate_bias, p.h, to_.dlogit, 1)",
    ),
]
