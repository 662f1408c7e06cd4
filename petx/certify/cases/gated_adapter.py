"""Cases of `gated_adapter`, VL-PET's adapter site."""

from dataclasses import dataclass

import torch

from petx.certify.cases.case import Case
from petx.functional._gated_adapter import ARGUMENTS, _by_reference

DROPOUT_SEED = 20_230_809


@dataclass(frozen=True)
class SiteCase(Case):
    mask: bool = False

    operation = "gated_adapter"
    ACTIVATIONS = ("h", "x")

    def mean_of(self, name):
        return 1.0 if name == "norm_weight" else 0.0

    def extras(self, device="cpu"):
        extras = {"seed": torch.tensor([DROPOUT_SEED], device=device)}
        if self.mask:
            keep = torch.rand(self.shapes["h"][:-1], generator=torch.Generator().manual_seed(1)) < 0.6
            extras["padding_mask"] = keep.to(device)
        return extras

    def call(self, tensors, extras):
        return super().call({"x": None, "down_bias": None, "up_bias": None} | tensors, extras)

    def expected(self, tensors):
        defaults = dict(granularity="none", heads=1, activation="gelu_tanh", gate_input="modified", middle_y="linear")
        defaults |= dict(placement="sequential", scale=1.0, dropout=0.0, residual=False, norm=None, eps=1e-5)
        extras = self.extras(tensors["h"].device)
        ordered = tuple(tensors.get(name) for name in ARGUMENTS)
        return _by_reference(ordered, extras.get("padding_mask"), extras["seed"], **defaults | self.options)

    def empty(self, batch):
        return SiteCase(self.name, super().empty(batch).shapes, self.options, self.mask)


def site(name, batch=(3, 5), d=24, r=8, r_g=6, d_x=None, *, bias=True, x=True, mask=False, **options):
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
    return SiteCase(name, shapes, options, mask)


BART_TAIL = dict(dropout=0.1, residual=True, norm="layer")
T5_TAIL = dict(dropout=0.1, residual=True, scale=0.3)
