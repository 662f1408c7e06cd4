"""The calls that are counted: petx's published shapes, and every operation at 1,024 tokens."""

import torch

from petx.bench.case import BenchCase
from petx.bench.operations import cores, mixture, reconstruct, site, update

SMALL = 1_024  # tokens, of which 64 make a block of rows
DTYPE = torch.bfloat16


def small() -> list[BenchCase]:
    return [
        site(SMALL, DTYPE, "bart-1024", tail="bart"),
        site(SMALL, DTYPE, "bare-1024"),
        site(SMALL, DTYPE, "t5-1024", r=192, tail="t5"),
        update(SMALL, DTYPE, "qkv-1024"),
        update(SMALL, DTYPE, "image-1024", d_in=1408, modes=2, dx=False),
        update(SMALL, DTYPE, "wide-1024", d_in=4096, d_out=4096, modes=1),
        mixture(SMALL, DTYPE, "uniform-1024"),
        mixture(SMALL, DTYPE, "token-1024", gate="token"),
        mixture(SMALL, DTYPE, "narrow-1024", experts=4, rank=16, gate="token"),
        cores(54, DTYPE, "qformer"),
        reconstruct(48, DTYPE, "qformer"),
    ]


def published() -> list[BenchCase]:
    return [
        site(28_000, DTYPE, "bart", tail="bart"),
        site(28_000, DTYPE, "bare"),
        site(16_800, DTYPE, "t5", r=192, tail="t5"),
        update(4_112, DTYPE, "qkv"),
        update(4_112, DTYPE, "image", d_in=1408, modes=2, dx=False),
        update(2_048, DTYPE, "wide", d_in=4096, d_out=4096, modes=1),
        mixture(4_112, DTYPE, "uniform"),
        mixture(4_112, DTYPE, "narrow", experts=4, rank=16, gate="token"),
    ]


def by_label() -> dict[str, BenchCase]:
    return {case.label: case for case in [*small(), *published()]}
