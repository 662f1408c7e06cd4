"""Cases of `gated_adapter`, VL-PET's adapter site."""

from dataclasses import dataclass
from typing import Any

import torch

from petx.bench.case import BenchCase
from petx.certify.cases.case import ONE_SHARE, WIDE, Case, Device, Results, Tensors, Trial
from petx.functional._gated_adapter import ARGUMENTS, _by_reference

DROPOUT_SEED = 20_230_809 << 32 | 2_023  # both halves matter


@dataclass(frozen=True)
class SiteCase(Case):
    """``far``: the mean of x, which a norm behind the residual has to take away."""

    mask: bool = False
    far: float = 0.0
    stream: bool = False  # the residual stream and its norm are in float32 beside 16 bits

    operation = "gated_adapter"
    ACTIVATIONS = ("h", "x")

    def mean_of(self, name: str) -> float:
        return {"norm_weight": 1.0, "x": self.far}.get(name, 0.0)

    def dtype_of(self, name: str, dtype: torch.dtype) -> torch.dtype:
        stream = self.stream and name in ("x", "norm_weight", "norm_bias")
        return torch.promote_types(dtype, torch.float32) if stream else dtype

    def result_dtype(self, tensors: Tensors) -> torch.dtype:
        return tensors["x" if self.stream else "h"].dtype

    def extras(self, device: Device = "cpu") -> Tensors:
        extras = {"seed": torch.tensor([DROPOUT_SEED], device=device)}
        if self.mask:
            keep = torch.rand(self.shapes["h"][:-1], generator=torch.Generator().manual_seed(1)) < 0.6
            extras["padding_mask"] = keep.to(device)
        return extras

    def call(self, tensors: dict[str, Any], extras: Tensors) -> Results:
        return super().call({"x": None, "down_bias": None, "up_bias": None} | tensors, extras)

    def expected(self, tensors: Tensors) -> Results:
        defaults = dict(granularity="none", heads=1, activation="gelu_tanh", gate_input="modified", middle_y="linear")
        defaults |= dict(placement="sequential", scale=1.0, dropout=0.0, residual=False, norm=None, eps=1e-5)
        extras = self.extras(tensors["h"].device)
        ordered = tuple(tensors.get(name) for name in ARGUMENTS)
        return _by_reference(ordered, extras.get("padding_mask"), extras["seed"], **defaults | self.options)

    def empty(self, batch: tuple[int, ...]) -> "SiteCase":
        return SiteCase(self.name, super().empty(batch).shapes, self.options, self.mask, self.far, self.stream)


def site(
    name: str,
    batch: tuple[int, ...] = (3, 5),
    d: int = 24,
    r: int = 8,
    r_g: int = 6,
    d_x: int | None = None,
    *,
    bias: bool = True,
    x: bool = True,
    mask: bool = False,
    far: float = 0.0,
    stream: bool = False,
    **options: Any,
) -> SiteCase:
    """A VL-PET site with the tensors that its options call for."""
    d_x = d_x or d
    heads, granularity = options.get("heads", 1), options.get("granularity", "none")
    read = d_x if options.get("placement") == "parallel" else d
    shapes = {"h": (*batch, d)}
    if x:
        shapes["x"] = (*batch, d_x)
    shapes |= {"down_weight": (r, read), "up_weight": (d, r // heads)}
    if bias:
        shapes |= {"down_bias": (r,), "up_bias": (d,)}
    gate = {"large": (d, r_g), "middleX": (1, d), "middleY": (d,), "small": (1, 2 * d)}.get(granularity)
    if gate:
        shapes["gate_weight"] = gate
    if granularity == "large":
        shapes["gate_down_weight"] = (r_g, d_x)
    if bias and granularity == "large":
        shapes |= {"gate_down_bias": (r_g,), "gate_bias": (d,)}
    if bias and granularity in ("middleX", "small"):
        shapes["gate_bias"] = (1,)
    if options.get("norm"):
        shapes["norm_weight"] = (d,)
    if options.get("norm") == "layer":
        shapes["norm_bias"] = (d,)
    return SiteCase(name, shapes, options, mask, far, stream)


BART_TAIL: dict[str, Any] = dict(dropout=0.1, residual=True, norm="layer")
T5_TAIL: dict[str, Any] = dict(dropout=0.1, residual=True, scale=0.3)


CERTIFIED = [
    Trial(site("none", x=False)),
    Trial(site("large-bart", granularity="large", **BART_TAIL), each_gradient=True),
    Trial(site("middleX", granularity="middleX", **BART_TAIL)),
    Trial(site("middleY-sigmoid", granularity="middleY", middle_y="sigmoid", **T5_TAIL)),
    Trial(site("scale-alone", granularity="middleY", residual=True, scale=0.3)),
    Trial(site("small-masked", granularity="small", mask=True, **BART_TAIL), each_gradient=True),
    Trial(site("small-original", granularity="small", gate_input="original", bias=False)),
    Trial(site("large-rms", granularity="large", residual=True, norm="rms", eps=1e-6, activation="gelu")),
    Trial(site("pair", heads=4, granularity="large", **BART_TAIL)),
    Trial(site("parallel-wide-x", d=16, d_x=24, granularity="large", placement="parallel")),
    Trial(site("value-layers", d=3 * 16, d_x=24, r=3 * 5, heads=3, placement="parallel")),
    Trial(site("one-token", batch=(1, 1), granularity="large", **BART_TAIL)),
    Trial(site("misaligned", batch=(2, 33), d=72, r=16, r_g=16, granularity="large", **BART_TAIL), misaligned=True),
    Trial(site("wide", batch=(1, 67), d=131, r=67, r_g=65, granularity="large", **BART_TAIL)),
    Trial(site("splits", batch=(5, 113), d=24, granularity="large", **BART_TAIL)),
    Trial(site("stream", granularity="large", stream=True, **BART_TAIL), each_gradient=True),
    Trial(site("stream-small", d=21, granularity="small", stream=True, **T5_TAIL), misaligned=True),
    Trial(site("one-share", batch=(1, 67), d=260, heads=2, granularity="large", **BART_TAIL), environment=ONE_SHARE),
    Trial(site("tall", batch=(1, 150), d=136, r=104, r_g=40, granularity="large", **BART_TAIL), environment=WIDE[3]),
    Trial(site("tall-bare", batch=(1, 150), d=136, r=40, r_g=24, granularity="large", **T5_TAIL), environment=WIDE[3]),
    Trial(site("tall-odd", batch=(1, 131), d=130, r=14, heads=2, granularity="middleX"), environment=WIDE[2]),
]

# BART's whole site; the rank is that of the adapter and of its gate.
SHAPES = [(280, 768, 96), (1008, 768, 96), (4088, 768, 96), (16352, 768, 96), (1008, 768, 32), (4088, 1024, 192)]


def timed(rows: int, width: int, rank: int, dtype: torch.dtype) -> BenchCase:
    from petx.bench.ops.gated_adapter import case as benchmark

    return benchmark(rows, dtype, "certify", d=width, r=rank, tail="bart")
