"""Constants of a call that are rounded to float32 where the call computes in float64."""

import torch

from tests.cases import BY_NAME
from tests.emulator.mutations import Mutation, of_case

OPERATION = ("gated_adapter", "expert_mixture", "mode_cores", "cp_reconstruct")
SPARED = ("bf16", "f16")
FILES = ()

CHECKS = [
    of_case(BY_NAME[operation, name], torch.float64)
    for operation, names in {
        "gated_adapter": "large-bart scale-alone large-rms",
        "expert_mixture": "uniform-gelu token-gelu",
        "mode_cores": "sigmoid",
        "cp_reconstruct": "sigmoid none-scaled",
    }.items()
    for name in names.split()
]

SITE, MIXTURE = "gated_adapter/block.cuh", "expert_mixture/block.cuh"
CORES, RECONSTRUCT = "mode_cores/block.cuh", "cp_reconstruct/block.cuh"


def rounded(name, file, before, value):
    """``value`` between ``before`` and a parenthesis becomes a float of it."""
    found = before + value + ")"
    return Mutation(name, file, found.translate(ESCAPED), f"{before}static_cast<float>({value}))")


ESCAPED = {ord(character): "\\" + character for character in ".()/"}
MUTATIONS = [
    rounded("eps in float32", SITE, "eps(C(", "p.eps"),
    rounded("scale of a site in float32", SITE, "scale(C(", "p.scale"),
    rounded("dropout's factor in float32", "common/dropout.cuh", "keep(C(", "1.0 / (1.0 - p)"),
    rounded("alpha in float32", MIXTURE, "alpha(C(", "p.alpha"),
    rounded("beta in float32", MIXTURE, "beta(C(", "p.beta"),
    rounded("equal gate in float32", MIXTURE, "equal_gate(", "C(1) / C(p.experts)"),
    rounded("temperature of cores in float32", CORES, "inverse_temperature(C(", "1 / p.temperature"),
    rounded("temperature of weights in float32", RECONSTRUCT, "inverse_temperature(C(", "1 / p.temperature"),
    rounded("scale of an update in float32", RECONSTRUCT, "scale(C(", "p.scale"),
]
