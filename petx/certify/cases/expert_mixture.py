"""Cases of `expert_mixture`, PETAL's mixture of instruction experts."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from petx import reference
from petx.bench.case import BenchCase
from petx.certify.cases.case import ONE_SHARE, WIDE, Case, Device, Results, Tensors, Trial
from petx.functional._expert_mixture import ARGUMENTS


@dataclass(frozen=True)
class MixtureCase(Case):
    scope: bool = False
    pool: bool = False

    operation = "expert_mixture"
    ACTIVATIONS = ("x",)

    def extras(self, device: Device = "cpu") -> Tensors:
        """Masks that leave the second sample without a token if they are a gate's."""
        batch = self.shapes["x"][:-1]
        drawn = torch.rand(2, *batch, generator=torch.Generator().manual_seed(1)) < 0.6
        extras = {"scope_mask": drawn[0].to(device)} if self.scope else {}
        if self.pool:
            if drawn[1].numel():
                drawn[1].view(-1, batch[-1])[1:2] = False
            extras["pool_mask"] = drawn[1].to(device)
        return extras

    def call(self, tensors: dict[str, Any], extras: Tensors) -> Results:
        return super().call({"down_bias": None, "up_bias": None} | tensors, extras)

    def expected(self, tensors: Tensors) -> Results:
        length, extras = self.shapes["x"][-2], self.extras(tensors["x"].device)
        x = tensors["x"]
        parameters: list[Any] = [tensors.get(name) for name in ARGUMENTS[1:]]
        batched = x.reshape(math.prod(x.shape[:-2]), length, x.shape[-1])
        masks: list[Any] = [
            extras[m].reshape(batched.shape[:2]) if m in extras else None for m in ("scope_mask", "pool_mask")
        ]
        return reference.expert_mixture(batched, *parameters, *masks, **self.options).reshape(x.shape)

    def empty(self, batch: tuple[int, ...]) -> "MixtureCase":
        return MixtureCase(self.name, super().empty(batch).shapes, self.options, self.scope, self.pool)


def mixture(
    name: str,
    batch: tuple[int, ...] = (3, 7),
    d: int = 24,
    experts: int = 3,
    rank: int = 4,
    *,
    bias: bool = True,
    scope: bool = False,
    pool: bool = False,
    **options: Any,
) -> MixtureCase:
    """An expert mixture with the tensors that its options call for."""
    stacked = experts * rank
    shapes = {"x": (*batch, d), "down_weight": (stacked, d), "up_weight": (d, stacked)}
    if bias:
        shapes |= {"down_bias": (stacked,), "up_bias": (experts, d)}
    if options.get("gate", "uniform") != "uniform":
        shapes["gate_weight"] = (experts, d)
        if bias:
            shapes["gate_bias"] = (experts,)
    return MixtureCase(name, shapes, {"experts": experts} | options, scope, pool)


TOKEN: dict[str, Any]
SAMPLE: dict[str, Any]
TOKEN, SAMPLE = dict(gate="token"), dict(gate="sample")
HYBRID = {"PETX_EXPERT_MIXTURE": "hybrid"}  # what many rows of large ranks take


CERTIFIED = [
    Trial(mixture("uniform", activation="gelu")),
    Trial(mixture("token", **TOKEN), each_gradient=True),
    Trial(mixture("token-top-2", top_k=2, activation="relu", scope=True, **TOKEN)),
    Trial(mixture("sample-pool", scope=True, pool=True, activation="gelu_tanh", **SAMPLE), each_gradient=True),
    Trial(mixture("unbiased", bias=False, alpha=-0.5, beta=-2.0, **TOKEN)),
    Trial(mixture("one-token", batch=(1, 1), **SAMPLE)),
    Trial(mixture("misaligned", batch=(2, 33), d=72, experts=3, rank=16, **TOKEN), misaligned=True),
    Trial(mixture("odd", batch=(3, 43), d=37, experts=3, rank=5, activation="gelu", scope=True, **TOKEN)),
    Trial(mixture("wide", batch=(1, 67), d=131, experts=3, rank=23, activation="gelu", **TOKEN)),
    # Without top_k: of so many experts rounding decides who is the last one chosen, in torch as in the kernel.
    Trial(mixture("many-experts", batch=(1, 66), d=72, experts=66, rank=2, **TOKEN)),
    Trial(mixture("splits", batch=(5, 113), d=24, experts=4, rank=4, **TOKEN)),
    Trial(mixture("tall", batch=(1, 150), d=136, experts=3, rank=32, activation="gelu", **TOKEN), environment=WIDE[3]),
    Trial(mixture("tall-odd", batch=(1, 131), d=131, experts=3, rank=23, **TOKEN), environment=WIDE[2]),
    Trial(mixture("strips", batch=(2, 75), d=136, experts=3, rank=20, **TOKEN), environment=WIDE[2]),
    Trial(mixture("strips-odd", batch=(3, 29), d=131, experts=5, rank=11, scope=True, **SAMPLE), environment=WIDE[2]),
    Trial(mixture("one-share", batch=(1, 67), d=150, rank=23, **TOKEN), environment=ONE_SHARE),
    Trial(mixture("hybrid-odd", batch=(3, 43), d=37, rank=5, **TOKEN), misaligned=True, environment=HYBRID),
    Trial(
        mixture("hybrid-equal", batch=(2, 35), d=136, rank=24, activation="gelu", scope=True),
        each_gradient=True,
        environment=HYBRID,
    ),
    Trial(mixture("hybrid-sample", pool=True, activation="gelu", **SAMPLE), each_gradient=True, environment=HYBRID),
]

# The rank is that of all six experts together, which a token gate weighs.
SHAPES = [(256, 768, 96), (1024, 768, 96), (4112, 768, 384), (16384, 768, 384), (1024, 768, 384), (4096, 2048, 96)]


def timed(rows: int, width: int, rank: int, dtype: torch.dtype) -> BenchCase:
    from petx.bench.ops.expert_mixture import case as benchmark

    return benchmark(rows, dtype, "certify", d=width, rank=rank // 6, gate="token")
