"""Forward and backward of the expert mixture, fused and hybrid."""

import torch

from tests.cases.expert_mixture import CASES, WIDE
from tests.emulator.mutations import Mutation, of_assertions, of_case, under
from tests.emulator.mutations._common import ROWS, SHARES
from tests.emulator.test_emulated_kernels import test_gradients_of_every_subset, test_inputs_may_begin_anywhere
from tests.emulator.test_expert_mixture_cuda import (
    test_large_logits,
    test_not_finite_exactly_where_the_reference_is_not,
    test_ties,
)
from tests.emulator.test_grids import test_rows_lie_on_the_first_axis

OPERATION = "expert_mixture"
FILES = tuple(
    f"expert_mixture/{name}"
    for name in ("block.cuh", "columns.cuh", "between.cuh", "forward.cu", "grads.cuh", "backward.cu")
)

BY_NAME = {case.name: case for case in [*CASES, *WIDE]}
NAMES = """uniform-scope token-gelu sample-pool-scope token-top-2 sample-top-2 many-experts odd odd-uniform odd-sample
wide-top wide-rank many-sample""".split()
HYBRID = "token-gelu sample-pool-scope odd uniform-scope negative wide-uniform".split()


CHECKS = [
    *(of_case(BY_NAME[name], dtype) for name in NAMES for dtype in (torch.float32, torch.bfloat16)),
    *(
        under(of_case(BY_NAME[name], dtype), PETX_EXPERT_MIXTURE="hybrid")
        for name in HYBRID
        for dtype in (torch.float32, torch.bfloat16)
    ),
    *(under(of_case(BY_NAME[name], torch.bfloat16), PETX_CUDA_SHARES="1") for name in ("few-rows", "wide-uniform")),
    # the depth of the products down in parts
    *(
        under(of_case(BY_NAME[name], torch.bfloat16), PETX_CUDA_WIDE="2")
        for name in ("wide-odd", "wide-sample", "wide-uniform")
    ),
    *(
        under(
            of_assertions(f"every subset's gradients, {name}", test_gradients_of_every_subset, BY_NAME[name]),
            PETX_EXPERT_MIXTURE=path,
        )
        for name, path in (
            ("sample-pool-scope", "hybrid"),
            ("uniform-scope", "hybrid"),
            ("uniform-scope", "fused"),
        )
    ),
    of_assertions("inputs begin anywhere", test_inputs_may_begin_anywhere, BY_NAME["token-gelu"], torch.bfloat16),
    of_assertions("ties", test_ties),
    of_assertions("grids of many rows", test_rows_lie_on_the_first_axis, OPERATION),
    *(of_assertions(f"large logits of a {gate}", test_large_logits, gate) for gate in ("token", "sample")),
    *(
        of_assertions(f"not finite, gate of a {gate}", test_not_finite_exactly_where_the_reference_is_not, gate)
        for gate in ("token", "sample")
    ),
]

SITE, FORWARD, BACKWARD = "expert_mixture/block.cuh", "expert_mixture/forward.cu", "expert_mixture/backward.cu"
BETWEEN, GRADS = "expert_mixture/between.cuh", "expert_mixture/grads.cuh"
COLUMNS = "expert_mixture/columns.cuh"
OPERAND, TILES = "common/operand.cuh", "common/wide_plan.h"

MUTATIONS = [
    *ROWS,
    *SHARES,
    # the softmax
    Mutation("softmax without the largest", SITE, r"most = value > most \? value : most;", "most = C(0);"),
    Mutation("largest of the first logit", SITE, r"most = value > most \? value : most;", ";"),
    Mutation("of equal logits the last", SITE, r"logit\(j\), j, logit\(k\), k\)", "logit(j), k, logit(k), j)"),
    Mutation("equal logits all kept", SITE, r"logit\(k\), k, least, last\)", "logit(k), 0, least, 1)"),
    Mutation("one expert more", SITE, r"larger == top_k - 1", "larger == top_k"),
    Mutation("sum over all experts", SITE, r"if \(kept\(k\)\) sum", "sum"),
    Mutation(
        "a row's every fourth gate", SITE, r"k = begin; k < experts; k \+= step", "k = begin; k < step; k += step"
    ),
    Mutation("experts left out as the kept with a gate of zero", SITE, r"gate_left_out\(sum\)", "C(0)"),
    # the mixture
    Mutation("lost alpha", FORWARD, r"p.alpha \* y.value\[j\]", "y.value[j]"),
    Mutation("lost beta", BETWEEN, r"mixed \? p.beta \* this->gate\(k\)", "mixed ? this->gate(k)"),
    Mutation("lost beta of equal gates", FORWARD, r"rounded\(u\), p.beta \* p.equal_gate", "rounded(u), p.equal_gate"),
    Mutation("lost beta of the biases", FORWARD, r"p.beta \* read\(this->gates \+ k\)", "read(this->gates + k)"),
    Mutation("lost beta of the mean bias", FORWARD, r"p.beta \* p.equal_gate \* sum", "p.equal_gate * sum"),
    Mutation("alpha of tokens out of scope", GRADS, r"mixed \? p.alpha : Compute<T>\(1\)", "p.alpha"),
    Mutation("all tokens in scope", SITE, r"!scope \|\| read\(scope \+ t\)", "true"),
    Mutation("tokens out of scope do not pass", FORWARD, r"if \(mixed\) \{", "if (true) {"),
    Mutation("equal gates of 1", SITE, r"C\(1\) / C\(p.experts\)", "C(1)"),
    Mutation("gates of the first row", SITE, r" \+ gate_row\(t\) \* experts", ""),
    Mutation("gate of another expert", BETWEEN, r"p.beta \* this->gate\(k\)", "p.beta * this->gate(0)"),
    Mutation("bias of the first expert", SITE, r"vectors, k \* p.d \+ column", "vectors, column"),
    Mutation("mean of the first expert's bias", FORWARD, r"p.up_bias, k \* p.d \+ column", "p.up_bias, column"),
    Mutation("a tile's biases over those of the last", FORWARD, r"static_cast<int>\(tile % 2\) \* Tile::kN \+ c", "c"),
    Mutation("gate's part of dx lost", GRADS, r"if \(p.gated\(\)\) \{", "if (false) {"),
    Mutation("sum of four lanes instead of eight", SITE, r"mask < kLanes; mask \*= 2", "mask < kLanes / 2; mask *= 2"),
    Mutation("rows past the end take part between", SITE, r"if \(!valid\) return;", ""),
    Mutation("an expert's last value left out", SITE, r"p.expert_rank - c\);", "p.expert_rank - c - 1);"),
    Mutation("a lane's first run alone", SITE, r"c \+= kRun \* kLanes", "c += p.expert_rank"),
    # two weights as one operand
    Mutation(
        "second weight's rows by the first's", OPERAND, r"second \+ \(l - head\) \* stride", "second + l * stride"
    ),
    Mutation("one row too many of the first weight", OPERAND, r"l < head \? first", "l <= head ? first"),
    Mutation("missing alignment test of both bases", OPERAND, r"both % 16 == 0 && ", ""),
    Mutation("missing alignment test of both rows", OPERAND, r"both % 16 == 0 && stride[^;]*", "both % 16 == 0"),
    Mutation(
        "missing tail mask of both",
        OPERAND,
        r"i < count \? load\(read\(line\(i\) \+ k\)\) :",
        "true ? load(read(line(i) + k)) :",
    ),
    # sums over a sample
    Mutation("a warp's tokens left out", SITE, r"k = 1; k < kWarps", "k = 2; k < kWarps"),
    Mutation("sample's last token left out", SITE, r"t < \(sample \+ 1\) \* length", "t < (sample + 1) * length - 1"),
    Mutation("first 32 experts alone", SITE, r"begin < width; begin \+= kColumns", "begin < 1; begin += kColumns"),
    # the forward
    Mutation("workspace a row short", FORWARD, r"take<T>\(p.rows \* p.stacked\)", "take<T>((p.rows - 1) * p.stacked)"),
    Mutation("empty mean divides by zero", FORWARD, r"sum / \(size > C\(1\) \? size : C\(1\)\)", "sum / size"),
    Mutation(
        "samples on the grid's second axis",
        FORWARD,
        r"sample = block_x\(\);([\s\S]*?)p\.samples\(\), 1, SampleSums",
        r"sample = block_y();\g<1>1, p.samples(), SampleSums",
    ),
    Mutation(
        "samples' gradients on the grid's second axis",
        BACKWARD,
        r"sample = block_x\(\), experts([\s\S]*?)p\.samples\(\), 1, SampleSums",
        r"sample = block_y(), experts\g<1>1, p.samples(), SampleSums",
    ),
    Mutation("padding counts", FORWARD, r"p.in_pool\(t\)", "true"),
    Mutation("mean by the length", FORWARD, r"\(size > C\(1\) \? size : C\(1\)\)", "C(p.length)"),
    Mutation("lost bias of a token's gate", BETWEEN, r"(p.experts \+ k\)) \+ at_or_zero<T>\(p.gate_bias, k\)", r"\1"),
    Mutation("lost bias of a sample's gate", FORWARD, r"(C\(1\)\)) \+ at_or_zero<T>\(p.gate_bias, k\)", r"\1"),
    Mutation("lost down bias", FORWARD, r"Base::add_to\(u, Base::load_run\(p.down_bias, column, left\)\);", ";"),
    Mutation("lost down bias, hybrid", BETWEEN, r"RowBlock<T>::add_to\(u, Base[^;]*;", ""),
    Mutation("second tile has the gate's first rows", FORWARD, r"head < 0 \? -head \* p.d : 0", "0"),
    Mutation("u made again, hybrid", FORWARD, r"down\(library \? p.stacked : 0, stream\)", "down(0, stream)"),
    Mutation(
        "one block of rows too few", "expert_mixture/plan.cpp", r"tiles_along\(p.rows\)", "tiles_along(p.rows - 1)"
    ),
    Mutation("last rank left out", FORWARD, r"(begin, p.d, p.stacked\)), p.stacked\);", r"\1, p.stacked - 1);"),
    # parts of the products down
    Mutation("every part from the first depth", TILES, r"int64_t from = split \* each", "int64_t from = 0 * each"),
    Mutation("last part as deep as the others", TILES, r"depth - from < each \? depth - from :", ""),
    Mutation(
        "parts of u and the logits in one place",
        FORWARD,
        r"split \* p.rows \* p.stacked, work.logits",
        "0, work.logits",
    ),
    Mutation("parts of the logits in one place", FORWARD, r"work.logits \+= split \* p.rows", "work.logits += 0"),
    Mutation(
        "logits of the first part", BETWEEN, r"sum_of_values\(work_.logits, splits", "sum_of_values(work_.logits, 1"
    ),
    Mutation("u of parts not kept", BETWEEN, r"if \(add_bias \|\| parts\)", "if (add_bias)"),
    Mutation("last part of a run left out", SITE, r"if \(n < count\) RowBlock", "if (n + 1 < count) RowBlock"),
    Mutation("last part of a value left out", SITE, r"n < count; \+\+n\) sum", "n + 1 < count; ++n) sum"),
    Mutation("parts of q in one place", BACKWARD, r"work.parts \+= split \*", "work.parts += 0 *"),
    Mutation(
        "parts of the gates' gradients in one place", BACKWARD, r"work.gate_parts \+ split \*", "work.gate_parts + 0 *"
    ),
    Mutation(
        "gates' gradients of the first part",
        GRADS,
        r"sum_of_values\(work_.gate_parts, splits",
        "sum_of_values(work_.gate_parts, 1",
    ),
    Mutation("workspace a part short", BACKWARD, r"split \? tiles_.splits \*", "split ? (tiles_.splits - 1) *"),
    # the backward
    Mutation("logits spread for dx alone", BACKWARD, r"if \(work_.sample\)", "if (work_.sample && g.dx)"),
    Mutation("biases' gradient without beta", GRADS, r"mixed \? p.beta \* p.equal_gate :", "mixed ? p.equal_gate :"),
    Mutation("biases learn out of scope", GRADS, r"mixed \? p.beta \* p.equal_gate : C\(0\)", "p.beta * p.equal_gate"),
    Mutation("one bias learns", BACKWARD, r"p.d, p.experts\);\n    \} else", "p.d);\n    } else"),
    Mutation("a weight's gradient left narrow", BACKWARD, r"sums_.widen\(grad\(g.up_weight, [^;]*;", ";"),
    Mutation("a narrow weight's gradient widened", BACKWARD, r" && !grad\(to, leaf\).narrow;", ";"),
    Mutation("lost slope", SITE, r"scale \* expert_activation_slope<kind>\(u\)", "scale"),
    Mutation("relu passes what is not a number", SITE, r"u <= C\(0\) \? C\(0\) : scale", "scale * (u > C(0))"),
    Mutation("relu cuts nothing off", SITE, r"u <= C\(0\) \? C\(0\) : scale", "scale"),
    Mutation("lost beta of the gates", GRADS, r"p.beta \* \(along", "(along"),
    Mutation("lost biases of the gates", GRADS, r"along \+ dout_along_bias<parts>\(first_gate \+ k, splits\)", "along"),
    Mutation("lost mean of a token", GRADS, r"first_gate \+ k\), mean\)", "first_gate + k), C(0))"),
    Mutation("lost mean of a sample", BACKWARD, r"read\(part \+ k\), mean\)", "read(part + k), C(0))"),
    Mutation("sample's gradient not shared out", BACKWARD, r"dlogit / size", "dlogit"),
    Mutation("padding has a gradient", BACKWARD, r"p.in_pool\(token\) \?", "true ?"),
    Mutation("padding counts in the backward", BACKWARD, r"return p.in_pool\(t\)", "return true"),
    Mutation("a sample's last token has no gradient", BACKWARD, r"while \(t < p.length\)", "while (t < p.length - 1)"),
    Mutation("a sample's first tokens' gradients alone", BACKWARD, r"t \+= tokens, k \+= more;", "t += p.length;"),
    Mutation("lost beta of the up bias", GRADS, r"first_gate \+ k, scale\)", "first_gate + k, gate)"),
    Mutation("a row's first eight logits", GRADS, r"k < p.experts; k \+= kLanes", "k < kLanes; k += kLanes"),
    Mutation(
        "gate's bias by tokens' shares",
        BACKWARD,
        r"\(g.gate_bias, 6\), work_.sample,",
        "(g.gate_bias, 6), work_.token,",
    ),
    Mutation("dx of q", SITE, r"q \* \(scale \* ", "q * ("),
    # the passes of equal gates, by columns
    Mutation("every block the first columns", COLUMNS, r"first\(block_x\(\) \* ", "first(0 * "),
    Mutation("every lane the first run", COLUMNS, r"thread_index\(\) % ColumnPass::kLanes \* kRun", "0"),
    Mutation("every split the first", COLUMNS, r"begin = block_y\(\) \* pass.size", "begin = 0 * pass.size"),
    Mutation("rows past the split", COLUMNS, r"begin \+ pass.size < p.rows \? begin \+ pass.size : p.rows", "p.rows"),
    Mutation("rows past the last", COLUMNS, r"begin \+ pass.size < p.rows \? (begin \+ pass.size) : p.rows", r"\1"),
    Mutation("a split's first rows alone", COLUMNS, r"t \+= ColumnPass::kRowsAtOnce", "t += p.rows"),
    Mutation("sums of every split in one place", COLUMNS, r"block_y\(\) \* width \+ first, ", "first, "),
    Mutation("sums of the first columns", COLUMNS, r"width \+ first, width - first", "width, width - first"),
    Mutation("sums past the width", COLUMNS, r"width - first, sum", "width, sum"),
    Mutation("lost down bias of equal gates, hybrid", COLUMNS, r"RowBlock<T>::add_to\(u, bias\);", ""),
    Mutation("lost down bias in the backward", GRADS, r"if \(add_bias\) u = own.biased\(u, bias\);", ""),
    Mutation("down bias twice in the backward", BACKWARD, r"ranks_, plan_.hybrid\)", "ranks_, true)"),
    Mutation("lost beta of equal gates, hybrid", BETWEEN, r"u, p.beta \* p.equal_gate", "u, p.equal_gate"),
    Mutation("lost beta of du", GRADS, r"scale = p.beta \* p.equal_gate", "scale = p.equal_gate"),
    Mutation(
        "up weight learns out of scope",
        GRADS,
        r"mixed \? scaled_activation\(([^?]*)\) : RunOf<T>\{\}",
        r"scaled_activation(\1)",
    ),
    Mutation(
        "down weight learns out of scope",
        GRADS,
        r"mixed \? hidden_grads\(([^?]*)\) : RunOf<T>\{\}",
        r"hidden_grads(\1)",
    ),
    Mutation(
        "down bias of q",
        GRADS,
        r"add_to\(sum, put_equal_gates<T>\((.*)\)\);",
        r"add_to(sum, (put_equal_gates<T>(\1), q));",
    ),
    Mutation("equal gates kept by every column", GRADS, r"!own.column\)", "true)"),
    Mutation("equal gates kept by every tile", GRADS, r"if \(!begin && work_.equal_gate", "if (work_.equal_gate"),
    Mutation("biases learn out of scope, hybrid", GRADS, r"if \(mixed\) (RowBlock<T>::add_to\(sum, dout\))", r"\1"),
    Mutation("biases' sums without beta", GRADS, r"value \*= p.beta \* p.equal_gate", "value *= p.equal_gate"),
    Mutation("one bias learns, hybrid", BACKWARD, r"p.d, p.d, nullptr, p.experts\)", "p.d, p.d)"),
    Mutation(
        "a split of the biases' sums left out",
        BACKWARD,
        r"work_.bias_sums, width_.splits",
        "work_.bias_sums, width_.splits - 1",
    ),
    Mutation(
        "a split of du's sums left out",
        BACKWARD,
        r"work_.rank_sums, ranks_.splits",
        "work_.rank_sums, ranks_.splits - 1",
    ),
    Mutation("biases learn beside dx alone", BACKWARD, r"\(g.dx \|\| work_.bias_sums\)", "g.dx"),
    Mutation("hidden values made for du alone", BACKWARD, r" && work_.du;", ";"),
    Mutation(
        "equal gates split the depth",
        BACKWARD,
        r"!plan_.hybrid && p.gated\(\) && g.hidden",
        "!plan_.hybrid && g.hidden",
    ),
    Mutation("biases' products not made", GRADS, r"p.experts \+ k \+ j, run.value\[j\]", "p.experts + k + j, C(0)"),
]
