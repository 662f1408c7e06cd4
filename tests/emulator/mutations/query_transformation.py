"""Forward and backward of the residual by channel."""

import torch

from petx.certify.cases.query_transformation import FEW_SPLITS
from tests.cases.query_transformation import CASES, WIDE, transformation
from tests.emulator.mutations import Mutation, of_assertions, of_case, under
from tests.emulator.test_grids import test_rows_lie_on_the_first_axis
from tests.emulator.test_query_transformation_cuda import test_cost

OPERATION = "query_transformation"
FILES = ("query_transformation/backward.cu",)

BY_NAME = {case.name: case for case in [*CASES, *WIDE]}
NAMES = """whole residual-apart apart to-apart x-wider to-wider odd-in-wider four-dimensions odd one-row-samples wide
wide-apart wide-odd many-splits""".split()
# Samples of 32 rows and of 33, so that a thread's next row is one sample on, or one row further in the one after.
SAMPLES = [transformation(f"samples-of-{length}", batch=(4, length), d=16, apart=1) for length in (31, 32, 33)]

CHECKS = [
    of_case(case, dtype) for case in [*map(BY_NAME.get, NAMES), *SAMPLES] for dtype in (torch.float32, torch.bfloat16)
]
CHECKS += [
    *(under(of_case(BY_NAME["long-splits"], dtype), **FEW_SPLITS) for dtype in (torch.float32, torch.bfloat16)),
    of_assertions("grids", test_rows_lie_on_the_first_axis, OPERATION),
    *(of_assertions(f"cost in {str(dtype)[6:]}", test_cost, dtype) for dtype in (torch.float32, torch.bfloat16)),
]

BLOCK, FORWARD, BACKWARD = (f"query_transformation/{name}" for name in ("block.cuh", "forward.cu", "backward.cu"))
PLAN = "common/column_pass.h"

MUTATIONS = [
    # the grid
    Mutation("last block of columns left out", PLAN, r"\(width \+ columns - 1\) / columns", "width / columns"),
    Mutation("last split left out", PLAN, r"splits = \(all_rows \+ size - 1\) / size", "splits = all_rows / size"),
    Mutation("splits of half their rows", PLAN, r"least = 2 \* kRowsAtOnce", "least = kRowsAtOnce"),
    Mutation("all blocks take the first columns", BLOCK, r"block_x\(\) % call\.across \*", "0 *"),
    Mutation("all blocks take the first split", BLOCK, r"begin = split \* call\.size", "begin = 0 * call.size"),
    Mutation("rows past the split", BLOCK, r"left < call\.size \? left : call\.size", "left"),
    Mutation("rows past the last", BLOCK, r"left < call\.size \? left : call\.size", "call.size"),
    Mutation("a row too few", BLOCK, r"\(rows - slot \+ kStep - 1\) / kStep", "(rows - slot) / kStep"),
    Mutation("lanes have the first's columns", BLOCK, r"thread_index\(\) % kLanes \* kRun", "0"),
    # where rows lie
    Mutation("rows of samples that lie apart as of one", BLOCK, r"dense\(p\.x\) && dense\(second\)", "true"),
    Mutation("the second tensor's samples not asked", BLOCK, r" && dense\(second\)", ""),
    Mutation("the first tensor's samples not asked", BLOCK, r"dense\(p\.x\) && ", ""),
    Mutation(
        "samples dense in the first tensor's rows", BLOCK, r"sample_ \* path\.sample", "sample_ * call_.read.sample"
    ),
    Mutation("step within the sample", BLOCK, r"kStep / length \* sample \+ ", ""),
    Mutation("step of whole samples", BLOCK, r"kStep % length \* row", "kStep * row"),
    Mutation("the next sample's rows run on", BLOCK, r"\(wraps_ \? path\.wrap : 0\)", "0"),
    Mutation("next sample a row late", BLOCK, r"within_ >= call_\.length", "within_ > call_.length"),
    Mutation("row in the sample not counted down", BLOCK, r"if \(wraps_\) within_ -= call_\.length;", ""),
    Mutation("row in the sample not counted", BLOCK, r"within_ \+= call_\.within_step;", ""),
    Mutation("all in the first sample", BLOCK, r"call\.length < call\.rows \? row / call\.length : 0", "0"),
    # alignment
    Mutation(
        "strides not asked for packs", BLOCK, r"reinterpret_cast<uintptr_t>\(data\) \| strides", "(uintptr_t)data"
    ),
    Mutation("the second tensor not asked for packs", BLOCK, r"read\.whole\(\) && other\.whole\(\)", "read.whole()"),
    Mutation("the first tensor not asked for packs", BLOCK, r"read\.whole\(\) && other\.whole\(\)", "other.whole()"),
    Mutation("width not asked for packs", BLOCK, r"\| static_cast<uintptr_t>\(width\) \* sizeof\(T\)", ""),
    # forward
    Mutation("lost factor", FORWARD, r"scale\.value\[j\] \*= call\.factor, ", ""),
    Mutation("lost factor of the shift", FORWARD, r", shift\.value\[j\] \*= call\.factor", ""),
    Mutation("scale of the first columns", FORWARD, r"call\.scale, thread\.column, left", "call.scale, 0, left"),
    Mutation("shift of the first columns", FORWARD, r"call\.shift, thread\.column, left", "call.shift, 0, left"),
    Mutation("not added", FORWARD, r"other = to \? load_pack", "other = false ? load_pack"),
    Mutation(
        "every row to the first's place", FORWARD, r"y \+= QueryTransformationPlan", "y += 0 * QueryTransformationPlan"
    ),
    Mutation(
        "missing tail mask", FORWARD, r"transform\(call, y, thread, left\)", "transform(call, y, thread, int64_t(64))"
    ),
    Mutation("columns past the width", FORWARD, r"if \(left <= 0\) return;", ""),
    Mutation("x of the first row in the forward", FORWARD, r"thread\.on\(x, call\.read\);", ""),
    Mutation("`to` of the first row", FORWARD, r"thread\.on\(to, call\.other\);", ";"),
    # backward
    Mutation("lost factor of dx", BACKWARD, r"scale\.value\[j\] \*= call\.factor;", ";"),
    Mutation("dx by the first columns' scale", BACKWARD, r"call\.scale, thread\.column, left", "call.scale, 0, left"),
    Mutation("dx is dout", BACKWARD, r"Block::multiply_by\(grad, scale\);", ""),
    Mutation("dx of the first row", BACKWARD, r"dx \+= QueryTransformationPlan", "dx += 0 * QueryTransformationPlan"),
    Mutation(
        "dscale without x",
        BACKWARD,
        r"grad\.value\[j\] \* value\.value\[j\]",
        "grad.value[j] * (0 * value.value[j] + 1)",
    ),
    Mutation("dscale of the last row", BACKWARD, r"by_scale\.value\[j\] \+=", "by_scale.value[j] ="),
    Mutation(
        "dshift of dx",
        BACKWARD,
        r"Block::add_to\(by_shift, grad\);([\s\S]*?)(multiply_by\(grad, scale\);)",
        r"\1\2 Block::add_to(by_shift, grad);",
    ),
    Mutation("x of the first row", BACKWARD, r"thread\.on\(x, call\.read\);", ""),
    Mutation("dout of the first row", BACKWARD, r"thread\.on\(dout, call\.other\);", ""),
    Mutation("missing tail mask of the gradient", BACKWARD, r"by_shift, left\)", "by_shift, int64_t(64))"),
    Mutation("both sums in one place", BACKWARD, r"of_shift\(Parts::kSharedBytes\)", "of_shift(0)"),
    Mutation("lost factor of dscale", BACKWARD, r"factor \* of_scale", "of_scale"),
    Mutation("lost factor of dshift", BACKWARD, r"factor \* of_shift", "of_shift"),
    Mutation("swapped sums", BACKWARD, r"factor \* of_scale\.whole", "factor * of_shift.whole"),
    Mutation("splits in one place", BACKWARD, r"place = Thread::split_of\(call\) \* sums\.stride \+", "place ="),
    Mutation("sum past the width", BACKWARD, r" \|\| column >= call\.width", ""),
    Mutation("sums of odd widths without room", BACKWARD, r"\(p\.width \+ kRun - 1\) / kRun \* kRun", "p.width / 2"),
    Mutation("workspace a split short", BACKWARD, r"g\.dshift \? plan_\.splits", "g.dshift ? (plan_.splits - 1)"),
    Mutation(
        "first split left out",
        BACKWARD,
        r"plan_\.splits, sums_\.stride, p\.width",
        "plan_.splits - 1, sums_.stride, p.width",
    ),
]
