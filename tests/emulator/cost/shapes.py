"""The calls that are counted: petx's published shapes, and every operation at 1,024 tokens."""

import torch

from petx.bench.case import BenchCase
from petx.bench.ops import cp_reconstruct, expert_mixture, gated_adapter, mode_cores, mode_update, query_transformation

SMALL = 1_024  # tokens, of which 64 make a block of rows
DTYPE = torch.bfloat16


def small() -> list[BenchCase]:
    return [
        gated_adapter.case(SMALL, DTYPE, "bart-1024", tail="bart"),
        gated_adapter.case(SMALL, DTYPE, "bare-1024"),
        gated_adapter.case(SMALL, DTYPE, "t5-1024", r=192, tail="t5"),
        gated_adapter.case(SMALL, DTYPE, "middleX-1024", granularity="middleX", tail="bart"),
        # So few that gradients of weights take tiles of 64 x 64; in mixed precision.
        gated_adapter.case(512, DTYPE, "stream-512", tail="bart", stream=True),
        mode_update.case(SMALL, DTYPE, "qkv-1024"),
        mode_update.case(SMALL, DTYPE, "image-1024", d_in=1408, modes=2, dx=False),
        mode_update.case(SMALL, DTYPE, "wide-1024", d_in=4096, d_out=4096, modes=1),
        mode_update.case(SMALL, DTYPE, "diagonal-1024", diagonal=True),
        expert_mixture.case(SMALL, DTYPE, "uniform-1024"),
        expert_mixture.case(SMALL, DTYPE, "token-1024", gate="token"),
        expert_mixture.case(SMALL, DTYPE, "narrow-1024", experts=4, rank=16, gate="token"),
        expert_mixture.case(SMALL, DTYPE, "sample-1024", experts=4, rank=16, gate="sample", length=32),
        mode_cores.case(54, DTYPE, "qformer"),
        mode_cores.case(54, DTYPE, "diagonal", diagonal=True),
        # Tiles of 64 x 128 up, where equal gates leave no launch for strips' images; and so few rows that none is wide.
        expert_mixture.case(2_048, DTYPE, "uniform-2048"),
        expert_mixture.case(512, DTYPE, "token-512", gate="token"),
        cp_reconstruct.case(48, DTYPE, "qformer"),
        # So few that the forward goes by tiles; and a rank that no strip has.
        cp_reconstruct.case(3, DTYPE, "few"),
        cp_reconstruct.case(3, DTYPE, "rank-96", rank=96),
        query_transformation.case(SMALL, DTYPE, "qformer-1024"),
    ]


def published() -> list[BenchCase]:
    return [
        gated_adapter.case(28_000, DTYPE, "bart", tail="bart"),
        gated_adapter.case(8_192, DTYPE, "bart-8192", tail="bart"),
        gated_adapter.case(28_000, DTYPE, "bare"),
        gated_adapter.case(16_800, DTYPE, "t5", r=192, tail="t5"),
        mode_update.case(4_112, DTYPE, "qkv"),
        mode_update.case(4_112, DTYPE, "image", d_in=1408, modes=2, dx=False),
        mode_update.case(2_048, DTYPE, "wide", d_in=4096, d_out=4096, modes=1),
        expert_mixture.case(4_112, DTYPE, "uniform"),
        expert_mixture.case(16_384, DTYPE, "uniform-16384"),
        expert_mixture.case(4_112, DTYPE, "narrow", experts=4, rank=16, gate="token"),
        expert_mixture.case(16_384, DTYPE, "narrow-16384", experts=4, rank=16, gate="token"),
        query_transformation.case(4_112, DTYPE, "qformer"),
        # In float32, whose products take the plain units.
        mode_cores.case(54, torch.float32, "qformer-f32"),
    ]


def by_label() -> dict[str, BenchCase]:
    return {case.label: case for case in [*small(), *published()]}
