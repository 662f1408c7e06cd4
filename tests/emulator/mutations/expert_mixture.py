"""Forward and backward of the expert mixture, fused and hybrid."""

import os
from unittest import mock

import torch

from tests.cases.expert_mixture import CASES, WIDE
from tests.emulator.mutations import Check, Mutation, of_assertions, of_case
from tests.emulator.test_emulated_kernels import test_inputs_may_begin_anywhere
from tests.emulator.test_expert_mixture_cuda import test_large_logits, test_ties

OPERATION = "expert_mixture"
FILES = ("expert_mixture/block.cuh", "expert_mixture/forward.cu", "expert_mixture/backward.cu")

BY_NAME = {case.name: case for case in [*CASES, *WIDE]}
NAMES = """uniform-scope token-gelu sample-pool-scope token-top-2 sample-top-2 many-experts odd odd-uniform odd-sample
wide-top""".split()
HYBRID = "token-gelu sample-pool-scope odd".split()


def of_hybrid_case(case, dtype):
    fused = of_case(case, dtype)

    def run(emulator):
        with mock.patch.dict(os.environ, PETX_EXPERT_MIXTURE="hybrid"):
            return fused.run(emulator)

    return Check(f"{case}, hybrid, {str(dtype)[6:]}", run)


CHECKS = [
    *(of_case(BY_NAME[name], dtype) for name in NAMES for dtype in (torch.float32, torch.bfloat16)),
    *(of_hybrid_case(BY_NAME[name], dtype) for name in HYBRID for dtype in (torch.float32, torch.bfloat16)),
    of_assertions("inputs begin anywhere", test_inputs_may_begin_anywhere, BY_NAME["token-gelu"], torch.bfloat16),
    of_assertions("ties", test_ties),
    *(of_assertions(f"large logits of a {gate}", test_large_logits, gate) for gate in ("token", "sample")),
]

SITE, FORWARD, BACKWARD = "expert_mixture/block.cuh", "expert_mixture/forward.cu", "expert_mixture/backward.cu"
OPERAND = "common/operand.cuh"
ROWS = "common/row_block.cuh"

MUTATIONS = [
    # the softmax
    Mutation("softmax without the largest", SITE, r"most = value > most \? value : most;", "most = C(0);"),
    Mutation("largest of the first logit", SITE, r"most = value > most \? value : most;", ";"),
    Mutation("of equal logits the last", SITE, r"logit\(j\) == logit\(k\) && j < k", "logit(j) == logit(k) && j > k"),
    Mutation("equal logits all kept", SITE, r" && !\(logit\(k\) == least && k > last\)", ""),
    Mutation("one expert more", SITE, r"larger == top_k - 1", "larger == top_k"),
    Mutation("sum over all experts", SITE, r"if \(kept\(k\)\) sum", "sum"),
    Mutation(
        "a row's every fourth gate", SITE, r"k = begin; k < experts; k \+= step", "k = begin; k < step; k += step"
    ),
    # the mixture
    Mutation("lost alpha", SITE, r"C\(p.alpha\) \* at<T>\(p.x, i\)", "at<T>(p.x, i)"),
    Mutation("lost beta", SITE, r"C\(p.beta\) \* gate\(t, column", "gate(t, column"),
    Mutation("lost beta of the biases", SITE, r"C\(p.beta\) \* sum", "sum"),
    Mutation("alpha of tokens out of scope", SITE, r"\(in_scope\(t\) \? C\(p.alpha\) : C\(1\)\)", "C(p.alpha)"),
    Mutation("all tokens in scope", SITE, r"!p.scope \|\| read\(p.scope \+ t\)", "true"),
    Mutation("tokens out of scope do not pass", SITE, r"if \(!in_scope\(t\)\) \{", "if (false) {"),
    Mutation("equal gates of 1", SITE, r"C\(1\) / C\(p.experts\)", "C(1)"),
    Mutation("gates of the first row", SITE, r"p.gate_row\(t\) \* p.experts \+ k", "k"),
    Mutation("gate of another expert", SITE, r"gate\(t, column / p.rank\(\)\)", "gate(t, column % p.experts)"),
    Mutation("bias of the first expert", SITE, r"p.up_bias, k \* p.d \+ column", "p.up_bias, column"),
    Mutation("gate's part of dx lost", SITE, r"p.gated\(\) && k < p.experts", "false && k < p.experts"),
    Mutation("sum of two threads instead of four", ROWS, r"value \+= shuffle_xor\(value, 1\);", ""),
    Mutation("rows past the end take part", ROWS, r"if \(!valid\(\)\) return;", ""),
    Mutation(
        "last rows of the wrong block", ROWS, r"all_rows - first < Tile::kM \? all_rows - first : Tile::kM", "Tile::kM"
    ),
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
    # the forward
    Mutation("padding counts", FORWARD, r"!p.pool \|\| read\(p.pool \+ t\)", "true"),
    Mutation("mean by the length", FORWARD, r"\(size > C\(1\) \? size : C\(1\)\)", "C(p.length)"),
    Mutation("lost bias of a token's gate", FORWARD, r"(p.experts \+ k\)) \+ at_or_zero<T>\(p.gate_bias, k\)", r"\1"),
    Mutation("lost bias of a sample's gate", FORWARD, r"(C\(1\)\)) \+ at_or_zero<T>\(p.gate_bias, k\)", r"\1"),
    Mutation("lost down bias", FORWARD, r"product \+ at_or_zero<T>\(p.down_bias, column\)", "product"),
    Mutation("lost down bias, hybrid", FORWARD, r" \+ at<T>\(p.down_bias, column\)", ""),
    Mutation("second tile has the gate's first rows", FORWARD, r"head < 0 \? -head \* p.d : 0", "0"),
    Mutation("u made again, hybrid", FORWARD, r"down\(p.stacked\); \}", "down(0); }"),
    Mutation(
        "one block of rows too few", "expert_mixture/plan.cpp", r"tiles_along\(p.rows\)", "tiles_along(p.rows - 1)"
    ),
    Mutation("last rank left out", FORWARD, r"(begin, p.d, p.stacked\)), p.stacked\);", r"\1, p.stacked - 1);"),
    # the backward
    Mutation("lost slope", BACKWARD, r"scale \* q \* activation_slope\(p.activation, u\)", "scale * q"),
    Mutation("lost beta of the gates", BACKWARD, r"C\(p.beta\) \* \(along", "(along"),
    Mutation("lost biases of the gates", BACKWARD, r"along \+ dout_along_bias\(first_gate \+ k\)", "along"),
    Mutation("lost mean of a token", BACKWARD, r"first_gate \+ k\) - mean\)", "first_gate + k))"),
    Mutation("lost mean of a sample", BACKWARD, r"\(read\(part \+ k\) - mean\)", "read(part + k)"),
    Mutation("sample's gradient not shared out", BACKWARD, r"dlogit / size", "dlogit"),
    Mutation(
        "padding has a gradient", BACKWARD, r"bool counts = !p.pool \|\| read\(p.pool \+ t\)", "bool counts = true"
    ),
    Mutation(
        "padding counts in the backward", BACKWARD, r"\{ return !p.pool \|\| read\(p.pool \+ t\)", "{ return true"
    ),
    Mutation("expert's last value left out", BACKWARD, r"\? begin \+ rank : begin", "? begin + rank - 1 : begin"),
    Mutation("lost beta of the up bias", BACKWARD, r"first_gate \+ k, scale\)", "first_gate + k, gate)"),
    Mutation(
        "a row's first four logits",
        BACKWARD,
        r"this->valid\(\) && k < p.experts; k \+= Base::kSharers",
        "this->valid() && k < Base::kSharers && k < p.experts; k += Base::kSharers",
    ),
    Mutation("gate's bias by tokens' shares", BACKWARD, r"g.gate_bias, work_.sample,", "g.gate_bias, work_.token,"),
    Mutation("dx of q", BACKWARD, r"mixed \? scale \* q", "mixed ? q"),
    Mutation(
        "biases' products not made",
        BACKWARD,
        r"dgates \+ token \* p.experts \+ k, Tile::result\(0, row, c\)",
        "dgates + token * p.experts + k, C(0)",
    ),
]
