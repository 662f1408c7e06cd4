"""Forward and backward of the VL-PET site."""

import torch

from tests.cases import BY_NAME
from tests.emulator.mutations import Mutation, of_assertions, of_case, under
from tests.emulator.mutations._common import DROPOUT, MASK, ROW_SUMS, ROWS, SHARES
from tests.emulator.test_emulated_kernels import test_inputs_may_begin_anywhere
from tests.emulator.test_gated_adapter_cuda import (
    SHARED,
    SITES,
    test_a_float32_stream_is_not_rounded,
    test_a_gradient_may_begin_anywhere,
    test_a_norm_takes_no_product,
    test_cost,
    test_dropout_mask,
    test_gelu_is_of_z_as_it_is_stored,
)
from tests.emulator.test_grids import test_rows_lie_on_the_first_axis
from tests.emulator.test_token_sums import test_dropout_at_large_positions

OPERATION = "gated_adapter"
FILES = tuple(
    f"gated_adapter/{name}"
    for name in ("forward.cu", "rows.cuh", "backward.cu", "block.cuh", "grads.cuh", "values.cuh")
)
FILES += ("common/run_tile.cuh",)

NAMES = """scale-alone unused-x large-bart middleX middleX-bart small-masked middleY-sigmoid parallel-large-wide-x
parallel-large pair odd-pair large-rms middleX-original small-masked-original large-t5 large-exact
odd large-unbiased splits-small small-padded far-bart""".split()
# Without 16 bits there is no stream beside them.
STREAMS = "stream-bart stream-t5 stream-middleX stream-small stream-odd".split()
LARGE = BY_NAME["gated_adapter", "large-bart"]
SITE_BY_NAME = {case.name: case for case in SITES}

CHECKS = [
    *(of_case(BY_NAME["gated_adapter", name], dtype) for name in NAMES for dtype in (torch.float32, torch.bfloat16)),
    *(of_case(BY_NAME["gated_adapter", name], torch.bfloat16) for name in STREAMS),
    *(
        of_assertions(f"stream of {granularity}", test_a_float32_stream_is_not_rounded, granularity)
        for granularity in ("none", "middleX")
    ),
    *(under(of_case(SHARED[0], torch.bfloat16), PETX_CUDA_SHARES=shares) for shares in ("1", "4")),
    of_assertions("cost of large-ragged", test_cost, SITE_BY_NAME["large-ragged"], torch.bfloat16),
    of_assertions("cost of middleY", test_cost, SITE_BY_NAME["middleY"], torch.float32),
    of_assertions("inputs begin anywhere", test_inputs_may_begin_anywhere, LARGE, torch.bfloat16),
    of_assertions(
        "stream begins anywhere",
        test_inputs_may_begin_anywhere,
        BY_NAME["gated_adapter", "stream-bart"],
        torch.bfloat16,
    ),
    of_assertions("gradient begins anywhere", test_a_gradient_may_begin_anywhere),
    of_assertions("a norm takes no product", test_a_norm_takes_no_product),
    of_assertions("gelu of z as stored", test_gelu_is_of_z_as_it_is_stored, "none"),
    of_assertions("gelu of the gate's z", test_gelu_is_of_z_as_it_is_stored, "large"),
    of_assertions("dropout mask", test_dropout_mask, 0.1, torch.float32),
    of_assertions("dropout past 32 bits", test_dropout_at_large_positions, 2**32 + 7),
    of_assertions("grids of many rows", test_rows_lie_on_the_first_axis, OPERATION),
]

SITE, FORWARD, BACKWARD = "gated_adapter/block.cuh", "gated_adapter/forward.cu", "gated_adapter/backward.cu"
GRADS, VALUES = "gated_adapter/grads.cuh", "gated_adapter/values.cuh"
PASS, PLAN, RUN = "gated_adapter/rows.cuh", "gated_adapter/plan.h", "common/run_tile.cuh"

MUTATIONS = [
    *MASK,
    *ROWS,
    *ROW_SUMS,
    *SHARES,
    Mutation("lost scale", SITE, r"dropout.keep \*= scale;", ";"),
    Mutation("dropout keeps what it drops", DROPOUT, r"return word\[j\] >= least", "return word[j] < least"),
    Mutation("every value kept", DROPOUT, r"if \(!drops\(\)\) \{", "if (true) {"),
    Mutation(
        "dropout by row only", SITE, r"drop\(logits, \(first \+ row\) \* p.d \+ column", "drop(logits, first + row"
    ),
    Mutation(
        "dropout of other gates by row only", FORWARD, r"drop\(gate, i, seed, left\)", "drop(gate, i / p.d, seed, left)"
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
    Mutation("lost residual", SITE, r"return p.residual \? RowBlock<T>::load_run\(p.x, i, left\) : ", "return "),
    Mutation("lost residual of a token's gate", PASS, r" \|\| p.skip \|\| p.residual\) residual", ") residual"),
    Mutation("lost stream", SITE, r"if \(p.skip\) return", "if (false) return"),
    Mutation("lost stream of a token's gate", PASS, r"if \(wide \|\| p.skip \|\| ", "if (!wide && "),
    Mutation("x for the stream of a token's gate", PASS, r"p.skip \? p.skip : p.x, i", "p.x, i"),
    Mutation(
        "stream rounded to 16 bits",
        SITE,
        r"RowBlock<T>::store_wide_run\(data, i, left, run\)",
        "RowBlock<T>::store_wide_run(data, i, left, RowBlock<T>::rounded(run))",
    ),
    Mutation(
        "out beside a stream rounded to 16 bits",
        PASS,
        r"Block::store_wide_run\(data, i, left, run\)",
        "Block::store_wide_run(data, i, left, Block::rounded(run))",
    ),
    Mutation(
        "norm's weight beside a stream in 16 bits",
        VALUES,
        r"this->load_stream\(p.norm_weight",
        "Base::load_run(p.norm_weight",
    ),
    Mutation("gradient of the stream lost", VALUES, r"if \(g.skip\) Base", "if (false) Base"),
    Mutation(
        "stream's gradient without the norm's part",
        VALUES,
        r"store_wide_run\(g.skip, i, left, dy\)",
        "store_wide_run(g.skip, i, left, this->load_stream(g.dout, i, left))",
    ),
    Mutation(
        "stream's gradient rounded to 16 bits",
        VALUES,
        r"store_wide_run\(g.skip, i, left, dy\)",
        "store_wide_run(g.skip, i, left, Base::rounded(dy))",
    ),
    Mutation("norm's bias lost", VALUES, r"columns.add\(kNormBias, dy\);", ";"),
    Mutation(
        "small gate reads the first half for S", SITE, r"Granularity::small \? p.d : 0", "Granularity::small ? 0 : 0"
    ),
    Mutation(
        "gelu of the unrounded z",
        FORWARD,
        r"run = Base::rounded\(run\);",
        ";",
    ),
    Mutation("mean not subtracted", PASS, r"\(y.value\[j\] - mean_\) \* rstd_", "y.value[j] * rstd_"),
    Mutation("norm without eps", PASS, r" \+ constants.eps\)", ")"),
    Mutation(
        "variance as E[x^2] - E[x]^2",
        PASS,
        r"apart = j < count \? apart - mean : C\(0\), squares \+= apart \* apart;",
        "squares += j < count ? apart * apart - mean * mean : C(0), apart = j < count ? apart - mean : C(0);",
    ),
    Mutation("runs' means not joined", PASS, r"squares \+ apart \* apart \* seen_ \* part", "squares"),
    Mutation("mean of the last run", PASS, r"mean_ \+= apart \* part", "mean_ += apart"),
    Mutation("mean of eight columns at the end", PASS, r"mean = sum / C\(count\)", "mean = sum / C(kRun)"),
    Mutation("deviations past the end", PASS, r"apart = j < count \? y", "apart = true ? y"),
    Mutation("a token's gate comes too late", FORWARD, r"whole = large \|\| !this->has_token_gate\(\)", "whole = true"),
    Mutation("lost gate of a token", PASS, r"gate.value\[j\] = gate_;", "gate.value[j] = C(1);"),
    Mutation("dropout of a token's gate lost", PASS, r"this->drop\(gate, i, seed_, left\);", ""),
    Mutation("statistics of what was not stored", PASS, r"y = Block::rounded\(y\);", "y.value[0] += C(1);"),
    Mutation("gate's tiles begin with the adapter's", FORWARD, r"gate \? block_y\(\) - adapter_tiles : ", ""),
    Mutation(
        "one tile too many is the adapter's", FORWARD, r"block_y\(\) >= adapter_tiles", "block_y() > adapter_tiles"
    ),
    Mutation("down reads h for x", FORWARD, r"gate \|\| p.reads_x_in_down\(\)", "gate"),
    Mutation("gate reads h", FORWARD, r"reads_x = gate \|\| ", "reads_x = "),
    Mutation("gate's bias is the adapter's", FORWARD, r"gate \? p.gate_down_bias : p.down_bias", "p.down_bias"),
    Mutation(
        "S of h for the gate of S",
        PASS,
        r"GateInput::modified \? load_stream\(out_",
        "GateInput::modified ? Block::load_run(p.h",
    ),
    Mutation(
        "gate of small's own token",
        PASS,
        r"if \(small\) gate_ = this->sample_mean",
        "if (false) gate_ = this->sample_mean",
    ),
    Mutation("rows without a pass", PLAN, r"return has_token_gate\(p\) \|\| p.norm", "return p.norm"),
    Mutation("norm without a pass", PLAN, r" \|\| p.norm != Norm::none;", ";"),
    Mutation("heads' last tiles left out", PLAN, r"\{\{p.d / p.heads, p.heads\}\}", "{{p.d}}"),
    Mutation("tiles begin with the first head", SITE, r"head \* width \+ number", "number"),
    Mutation("tiles end with the first head", SITE, r"\(head \+ 1\) \* width", "width"),
    Mutation("rows of the wrong block of rows", SITE, r"token\(block_x\(\) \* kRows \+", "token(block_x() +"),
    Mutation("rows past the last", SITE, r"valid\(token < params.rows\)", "valid(token <= params.rows)"),
    Mutation("row's last columns left out", SITE, r"column < p.d; column \+=", "column + kRun < p.d; column +="),
    Mutation("sum of half the lanes", SITE, r"mask < kLanes", "mask < kLanes / 2"),
    Mutation("threads' means not joined", PASS, r" \+ seen_ \* apart \* apart", ""),
    Mutation(
        "norm of rms subtracts the mean",
        PASS,
        r"mean = p.norm == Norm::layer \? Base::row_sum\(sum\)",
        "mean = true ? Base::row_sum(sum)",
    ),
    Mutation("a kept row's last run left out", PASS, r"n < kKept; \+\+n", "n < kKept - 1; ++n"),
    Mutation(
        "deviations past a kept row's end",
        PASS,
        r"apart = j < count \? apart - mean : C\(0\)",
        "apart = apart - mean",
    ),
    Mutation(
        "every sharer writes the gate",
        PASS,
        r"if \(lane == 0 && valid\) write\(static_cast<C\*>\(p.token_gate\)",
        "if (valid) write(static_cast<C*>(p.token_gate)",
    ),
    Mutation(
        "one block of rows too few",
        PLAN,
        r"tiles_along\(p.rows\)",
        "tiles_along(p.rows - 1)",
    ),
    Mutation("small in one launch", FORWARD, r"if \(passes == 2\)", "if (false)"),
    Mutation("missing scale in the backward", VALUES, r"dy.value\[j\] \*= keep;", ";"),
    Mutation("dot without dropout", VALUES, r"this->drop\(gate, i, seed, left\);", ";"),
    Mutation(
        "residual after the scale",
        VALUES,
        r"(if \(g.dx && begins_dx\(p\)\) \{)",
        r"for (int j = 0; j < kRun; ++j) dy.value[j] *= this->factor(kept, j); \1",
    ),
    Mutation("lost projection on the norm", VALUES, r"apart.value\[j\] \* slope \+ shift", "shift"),
    Mutation("lost mean in the norm", VALUES, r"apart.value\[j\] \* slope \+ shift", "apart.value[j] * slope"),
    Mutation(
        "gate's slope of one sign",
        VALUES,
        r"\(y.value\[j\] - y.value\[j\] \* gate.value\[j\]\)",
        "(y.value[j] * gate.value[j])",
    ),
    Mutation("lost slope of the token gate", GRADS, r"value \*= sigma \* \(C\(1\) - sigma\)", "value *= sigma"),
    Mutation("padding's gate has a gradient", GRADS, r"if \(small && !this->counts\(token\)\) value = C\(0\);", ""),
    Mutation(
        "gradient through the gate lost",
        VALUES,
        r"if \(token_gate && p.gate_input == GateInput::modified\)",
        "if (false)",
    ),
    Mutation("gate's gradient to h lost", GRADS, r"if \(through_gate\) add_times", "if (false) add_times"),
    Mutation("gate's gradient to x lost", VALUES, r"if \(token_gate\) add_times\(dx", "if (false) add_times(dx"),
    Mutation(
        "lost slope of gelu",
        GRADS,
        r"Base::multiply_by\(slope, result\(c\)\);",
        "slope = result(c);",
    ),
    Mutation(
        "slope of the other gelu",
        GRADS,
        r"if \(p.activation == Activation::gelu\)",
        "if (p.activation != Activation::gelu)",
    ),
    Mutation("dz of the first head's up projection", GRADS, r" \+ head \* width \* rank;", ";"),
    Mutation("dz of the first head's dS", GRADS, r"to.ds\) \+ head \* width", "to.ds)"),
    Mutation("dz in the first head's place", GRADS, r"token \* of.all \+ of.first", "token * of.all"),
    Mutation("dz's tiles of a head begin with the first", GRADS, r"block_y\(\) % head_tiles", "0"),
    Mutation("gate's dz from dS", GRADS, r"gate \? to.dgate : to.ds", "to.ds"),
    Mutation(
        "gate's dz from the first head's tiles",
        GRADS,
        r"gate \? block_y\(\) - p.heads \* head_tiles :",
        "gate ? block_y() :",
    ),
    Mutation("S left as the result's pass left it", VALUES, r"Base::store_run\(to_.ds, i, left, s_or_y\);", ";"),
    Mutation("G not left for the pass", VALUES, r"Base::store_run\(to_.dgate, i, left, gate\);", ";"),
    Mutation(
        "a row's last part left out",
        VALUES,
        r"part < to_.parts; part \+= Base::kSharers",
        "part + 1 < to_.parts; part += Base::kSharers",
    ),
    Mutation(
        "sums of parts in one place", VALUES, r"i = part \* p.rows \+ this->first \+ row;", "i = this->first + row;"
    ),
    Mutation("every thread leaves a sum", VALUES, r"writes = thread_index\(\) % 4 == 0 && row", "writes = row"),
    Mutation("sums of rows that are not there", VALUES, r"% 4 == 0 && row < this->rows", "% 4 == 0"),
    Mutation("rms with a mean", VALUES, r"mean_part = p.norm == Norm::layer \? Base", "mean_part = true ? Base"),
    Mutation("gate not read", VALUES, r"valid && to_.gate \? read", "false ? read"),
    Mutation("a part's dots left out", GRADS, r"valid && part < to_.parts", "valid && part + 1 < to_.parts"),
    Mutation("dots of padding alone", GRADS, r"sample_mean\(to_.dot, false\)", "sample_mean(to_.dot, true)"),
    Mutation("padding's gates count", GRADS, r"sample_mean\(p.token_gate, true\)", "sample_mean(p.token_gate, false)"),
    Mutation(
        "every lane writes the row's number",
        GRADS,
        r"if \(lane != 0 \|\| !valid\) return;\n    if",
        "if (!valid) return;\n    if",
    ),
    Mutation("dh's last tile is dx's", GRADS, r"tile < h_tiles, adapter", "tile + 1 < h_tiles, adapter"),
    Mutation("packs of odd widths", SITE, r"bits = p.d / p.heads % kRun \|\| p.d_x % kRun;", "bits = 0;"),
    Mutation("packs of odd inputs", SITE, r"p.norm_bias, p.skip\}\)\s+bits \|=", "p.norm_bias, p.skip}) bits &="),
    Mutation("packs of an odd stream", SITE, r"p.norm_bias, p.skip\}\)", "p.norm_bias})"),
    Mutation(
        "packs of odd results",
        SITE,
        r"for \(const void\* one : results\) bits \|=",
        "for (const void* one : results) bits &=",
    ),
    Mutation("dx's tiles begin behind dh's", GRADS, r"of_h \? tile : tile - h_tiles", "tile"),
    Mutation("adapter's part of the other input", GRADS, r"adapter = of_h != parallel", "adapter = of_h"),
    Mutation("gate's part of dx lost", GRADS, r"gate = !of_h && this->large\(\)", "gate = false"),
    Mutation("dx never begun", PLAN, r"p.d_x == p.d && ", "false && "),
    Mutation("gelu of the adapter alone", BACKWARD, r"p.r_g \? 2 : 1", "1"),
    Mutation(
        "values on the grid's second axis",
        BACKWARD,
        r"block_y\(\) == 1;(\s+const int64_t i = \()block_x\(\)([\s\S]*?)(\(most [^,]*), p\.r_g \? 2 : 1,",
        r"block_x() == 1;\1block_y()\2p.r_g ? 2 : 1, \3,",
    ),
    Mutation("workspace a row short", FORWARD, r"take<T>\(p\.rows \* p\.r\)", "take<T>((p.rows - 1) * p.r)"),
    Mutation(
        "backward's workspace a row short",
        BACKWARD,
        r"ds = workspace\.take<T>\(p\.rows \* p\.d\)",
        "ds = workspace.take<T>((p.rows - 1) * p.d)",
    ),
    Mutation("gelu's last block left out", BACKWARD, r"\(most \+ of_block - 1\) / of_block", "most / of_block"),
    Mutation("gelu of as many as the adapter has", BACKWARD, r"gate \? p.r_g : p.r\)", "p.r)"),
    Mutation("dS without a look", BACKWARD, r"if \(int error = values<SiteStage::look>\(stream\)\) return error;", ""),
    Mutation(
        "a look without a pass", BACKWARD, r"if \(int error = values<SiteStage::pass>\(stream\)\) return error;", ""
    ),
    Mutation("norm's sums not made", BACKWARD, r"if \(p.norm == Norm::none && !token_gate\)", "if (!token_gate)"),
    Mutation(
        "no sums of a token's gate", BACKWARD, r"token_gate \? gates\(GateStage::dot", "false ? gates(GateStage::dot"
    ),
    Mutation("dots in one place", VALUES, r"to_.dots \+ k \* to_.parts \* p.rows \+ i", "to_.dots + i"),
    Mutation(
        "dots without the norm's projection",
        GRADS,
        r"value -= sum_of_parts\(to_.along",
        "if (false) value -= sum_of_parts(to_.along",
    ),
    Mutation("dots without the norm's mean", GRADS, r"if \(p.norm == Norm::layer\) value", "if (false) value"),
    Mutation("dots not scaled by the norm", GRADS, r"if \(valid\) value \*= read", "if (false) value *= read"),
    Mutation("dx without the gate's launch", BACKWARD, r"adds = large \|\| ", "adds = "),
    Mutation("dx of nothing not written", BACKWARD, r" \|\| !begins_dx\(p\);", ";"),
    Mutation("x begun from nothing", GRADS, r"else if \(begins_dx\(p\)\)", "else if (false)"),
    Mutation(
        "column sums of all groups but the last",
        VALUES,
        r"group < Tile::kColumnGroups; \+\+group",
        "group + 1 < Tile::kColumnGroups; ++group",
    ),
    Mutation("columns past the end of a head", VALUES, r"\|\| left <= 0\) continue", ") continue"),
    Mutation("column sums of the first", VALUES, r"Memory::place\(sum, group, pack\)", "Memory::place(0, group, pack)"),
    Mutation(
        "adapter's sum from the gate's",
        BACKWARD,
        r"\(g.up_bias, 5\), to_.ds",
        "(g.up_bias, 5), large ? to_.dgate : to_.ds",
    ),
    Mutation(
        "token gate's bias by its weight",
        BACKWARD,
        r"\(g.gate_bias, 9\), nullptr, to_.dlogit, 1\)",
        "(g.gate_bias, 9), p.h, to_.dlogit, 1)",
    ),
    # tiles whose results stay in registers
    Mutation(
        "a run's columns side by side",
        RUN,
        r"lane % 8 / 2 \* 8 \+ lane % 2 \+ lane / 16 \* 2",
        "lane % 8 + lane / 16 * 8",
    ),
    Mutation("no exchange of a run's packs", RUN, r"pack \^ \(line / 8 \* 2 \+ line % 2\)", "pack"),
    Mutation("last step of a run's depth left out", RUN, r"step >= steps", "step + 1 >= steps"),
    Mutation("a run waits for one group too few", RUN, r"wait_copies<kStages - 2>", "wait_copies<kStages - 1>"),
    Mutation("a run of the first row", RUN, r"number % 2 \* 2 \+ j % 2", "j % 2"),
    Mutation("a run of the first half", RUN, r"value\[number / 2\]\[j / 2\]", "value[0][j / 2]"),
    Mutation("rows of a warp not joined", RUN, r"mask = 4; mask < 32", "mask = 8; mask < 32"),
    Mutation("gates of the first row", RUN, r"get\(number \* kThreads \+", "get(0 * kThreads +"),
]
