"""Forward and backward of the VL-PET site."""

import torch

from tests.cases import BY_NAME
from tests.emulator.mutations import Mutation, of_assertions, of_case
from tests.emulator.mutations._common import DROPOUT, MASK, ROW_SUMS, ROWS
from tests.emulator.test_gated_adapter_cuda import SITES, test_cost, test_dropout_mask

OPERATION = "gated_adapter"
FILES = ("gated_adapter/forward.cu", "gated_adapter/backward.cu", "gated_adapter/block.cuh")

NAMES = """scale-alone large-bart middleX-bart small-masked middleY-sigmoid parallel-large-wide-x parallel-large pair
odd-pair large-rms middleX-original small-masked-original large-t5 large-exact odd large-unbiased
splits-small""".split()
SITE_BY_NAME = {case.name: case for case in SITES}

CHECKS = [
    *(of_case(BY_NAME["gated_adapter", name], dtype) for name in NAMES for dtype in (torch.float32, torch.bfloat16)),
    of_assertions("cost of large-ragged", test_cost, SITE_BY_NAME["large-ragged"], torch.bfloat16),
    of_assertions("cost of middleY", test_cost, SITE_BY_NAME["middleY"], torch.float32),
    of_assertions("dropout mask", test_dropout_mask, 0.1, torch.float32),
]

SITE, FORWARD, BACKWARD = "gated_adapter/block.cuh", "gated_adapter/forward.cu", "gated_adapter/backward.cu"

MUTATIONS = [
    *MASK,
    *ROWS,
    *ROW_SUMS,
    Mutation("lost scale", SITE, r"dropout.keep \*= scale;", ";"),
    Mutation("lost scale without dropout", SITE, r"factor.value\[j\] = constants.scale;", "factor.value[j] = C(1);"),
    Mutation("backward keeps what the forward drops", DROPOUT, r">= least \? 1u", "< least ? 1u"),
    Mutation("every value kept in the backward", DROPOUT, r"if \(!drops\(\)\) return", "if (true) return"),
    Mutation(
        "dropout by row only",
        SITE,
        r"factor.value, token \* p.d",
        "factor.value, token * (p.d - 1)",
    ),
    Mutation(
        "mean of a padded sample divides by zero", SITE, r"sum / \(count > C\(1\) \? count : C\(1\)\)", "sum / count"
    ),
    Mutation("padding counts", SITE, r"!only_counting \|\| counts\(t\)", "true"),
    Mutation("mean by the length", SITE, r"if \(counts\(t\)\) count \+= C\(1\);", "count += C(1);"),
    Mutation("mean of another sample", SITE, r"token / p.length \* p.length", "token / (p.length + 1) * p.length"),
    Mutation("mean of all but the last token", SITE, r"t < begin \+ p.length", "t < begin + p.length - 1"),
    Mutation("second head multiplies the first's rank", SITE, r"head \* rank\)", "0)"),
    Mutation("gate from the adapter's rows", SITE, r"block_rows\(hidden.gate_a, p.r_g\)", "block_rows(hidden.a, p.r)"),
    Mutation("lost bias", SITE, r"if \(p.up_bias\)", "if (false)"),
    Mutation("lost residual", FORWARD, r"if \(p.residual\)", "if (false)"),
    Mutation(
        "small gate reads the first half for S", SITE, r"Granularity::small \? p.d : 0", "Granularity::small ? 0 : 0"
    ),
    Mutation(
        "gelu of the unrounded z",
        FORWARD,
        r"run = Base::rounded\(run\);",
        ";",
    ),
    Mutation("mean not subtracted", FORWARD, r"\(y.value\[j\] - mean_\) \* rstd_", "y.value[j] * rstd_"),
    Mutation("norm without eps", FORWARD, r" \+ constants.eps\)", ")"),
    Mutation("runs' means not joined", FORWARD, r"squares \+ apart \* apart \* seen_ \* part", "squares"),
    Mutation("mean of the last run", FORWARD, r"mean_ \+= apart \* part", "mean_ += apart"),
    Mutation("mean of eight columns at the end", FORWARD, r"mean = sum / C\(count\)", "mean = sum / C(kRun)"),
    Mutation("deviations past the end", FORWARD, r"apart = j < count \? y", "apart = true ? y"),
    Mutation("S not kept for the result", FORWARD, r"Base::store_run\(out_, i, left, s\);", ""),
    Mutation("threads' means not joined", FORWARD, r" \+ seen_ \* apart \* apart", ""),
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
    Mutation("missing scale and dropout in the backward", BACKWARD, r"dy.value\[j\] \*= this->factor\(kept, j\);", ";"),
    Mutation("dot without dropout", BACKWARD, r"dy.value\[j\] \* this->factor\(kept, j\) \* s", "dy.value[j] * s"),
    Mutation(
        "residual after the scale",
        BACKWARD,
        r"(if \(g.dx && begins_dx\(\)\) \{)",
        r"for (int j = 0; j < kRun; ++j) dy.value[j] *= this->factor(kept, j); \1",
    ),
    Mutation("lost projection on the norm", BACKWARD, r" - hat.value\[j\] \* along_\)", ")"),
    Mutation("lost mean in the norm", BACKWARD, r"dy.value\[j\] - mean_part_ - hat", "dy.value[j] - hat"),
    Mutation("gate's slope of one sign", BACKWARD, r"\(C\(1\) - channel.value\[j\]\)", "channel.value[j]"),
    Mutation("lost slope of the token gate", BACKWARD, r"dgate \* sigma \* \(C\(1\) - sigma\)", "dgate * sigma"),
    Mutation("padding's gate has a gradient", BACKWARD, r"if \(!this->counts\(token\)\) dgate = C\(0\);", ""),
    Mutation(
        "gradient through the gate lost",
        BACKWARD,
        r"if \(token_gate && p.gate_input == GateInput::modified\)",
        "if (false)",
    ),
    Mutation("gate's gradient to h lost", BACKWARD, r"if \(through_gate\) add_times", "if (false) add_times"),
    Mutation("gate's gradient to x lost", BACKWARD, r"if \(token_gate\) add_times\(dx", "if (false) add_times(dx"),
    Mutation(
        "lost slope of gelu",
        BACKWARD,
        r"Base::multiply_by\(slope, this->result\(0, c\)\);",
        "slope = this->result(0, c);",
    ),
    Mutation(
        "slope of the other gelu",
        BACKWARD,
        r"if \(p.activation == Activation::gelu\)",
        "if (p.activation != Activation::gelu)",
    ),
    Mutation("dz of the first head only", BACKWARD, r"\+ head \* width \* rank \+ begin", "+ begin"),
    Mutation("x begun from nothing", BACKWARD, r"if \(begun\) Base::add_to", "if (false) Base::add_to"),
    Mutation("column sums of all 64 rows", BACKWARD, r"of < this->rows && begin", "begin"),
    Mutation(
        "column sums of the other slot",
        BACKWARD,
        r"sum \+= Tile::result\(slot, of, c\)",
        "sum += Tile::result(1 - slot % 2, of, c)",
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
