"""Which cases a set has: the published shapes, on a CPU scaled down, in every dtype; and the sweeps of one size."""

import torch

from petx.bench import layers
from petx.bench.operations import CPU_SCALE, cores, mixture, reconstruct, site, update

HALF_ON_CPU = "float16 is listed for the record; compiling it takes longer than all else of the case"
QUICK = "--quick compiles float32 only"


def cases(device, quick=False):
    """The cases for ``device`` ("cpu" or "cuda"), the quick ones first: where the time ends early, they are done."""
    gpu = device == "cuda"
    listed = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        half = dtype == torch.float16 and not gpu
        left_out = quick and dtype != torch.float32
        options = dict(compile_best=not (half or left_out), why_not=HALF_ON_CPU if half else QUICK)
        listed += _of_dtype(dtype, gpu, half, options) + layers.cases(dtype)
    if quick:
        return [case for case in listed if case.quick]
    return sorted(listed, key=lambda case: not case.quick)


def _of_dtype(dtype, gpu, half, options):
    def tokens(published, kind):
        return published if gpu else published // CPU_SCALE[kind]

    single = dtype == torch.float32
    quick = dict(quick=not half)
    bart, t5 = tokens(28_000, "bart"), tokens(28_000, "t5")
    text, image, wide = tokens(1_024, "qformer-text"), tokens(4_112, "qformer-image"), tokens(2_048, "wide")
    listed = [
        site(bart, dtype, "bart", tail="bart", **quick, **options),
        update(text, dtype, "text-qkv", **quick, **options),
        update(text, dtype, "text-qkv-projected", projections=True, **quick, **options),
        cores(54, dtype, "qformer", quick=single, **options),
        reconstruct(48, dtype, "qformer", **quick, **options),
        mixture(text, dtype, "released", **quick, **options),
    ]
    if half:
        return listed
    listed += [
        site(bart, dtype, "bart-bare", **options),
        site(tokens(8_192, "bart"), dtype, "bart-small", tail="bart", **options),
        site(t5, dtype, "t5", r=192, tail="t5", **options),
        update(image, dtype, "image-kv", d_in=1408, modes=2, dx=False, **options),
        update(wide, dtype, "wide", d_in=4096, d_out=4096, modes=1, **options),
        reconstruct(48, dtype, "qformer-full", gate="none", full=True, **options),
        reconstruct(1, dtype, "wide", d_in=4096, d_out=4096, **options),
        mixture(text, dtype, "token-gate", gate="token", **options),
        mixture(image, dtype, "narrow-token", experts=4, rank=16, gate="token", **options),
        mixture(wide, dtype, "wide", d=4096, experts=4, rank=16, **options),
    ]
    if gpu:
        listed += [
            site(1_024, dtype, "bart-1024", tail="bart", **options),
            update(16_384, dtype, "text-qkv-16384", **options),
            update(16_384, dtype, "image-kv-16384", d_in=1408, modes=2, dx=False, **options),
            update(8_192, dtype, "wide-8192", d_in=4096, d_out=4096, modes=1, **options),
            mixture(16_384, dtype, "released-16384", **options),
        ]
    return listed


def sweeps(device, quick):
    """(operation, size's name, cases) of which only one size grows; by petx and the best eager form, in float32."""
    dtype, factor = torch.float32, 8 if device == "cuda" else 1
    tokens = [256, 512, 1024, 2048, 4096]
    widths, ranks = [256, 512, 1024, 2048], [16, 32, 64, 128, 256]
    listed = [
        ("gated_adapter", "N", [site(n * factor, dtype, f"N={n}", tail="bart") for n in tokens]),
        ("mode_update", "N", [update(n * factor, dtype, f"N={n}") for n in tokens]),
        ("expert_mixture", "N", [mixture(n * factor, dtype, f"N={n}") for n in tokens]),
        ("gated_adapter", "d", [site(1024 * factor, dtype, f"d={d}", d=d, tail="bart") for d in widths]),
        ("gated_adapter", "r", [site(1024 * factor, dtype, f"r={r}", r=r, tail="bart") for r in ranks]),
        ("mode_update", "R", [update(1024 * factor, dtype, f"R={r}", rank=r) for r in ranks[:-1]]),
        ("mode_update", "modes", [update(1024 * factor, dtype, f"modes={k}", modes=k) for k in (1, 2, 3, 4)]),
        ("expert_mixture", "K", [mixture(1024 * factor, dtype, f"K={k}", experts=k) for k in (2, 4, 8, 16)]),
        ("cp_reconstruct", "modules", [reconstruct(k, dtype, f"modules={k}") for k in (3, 6, 12, 24, 48)]),
    ]
    return listed[:3] if quick else listed
