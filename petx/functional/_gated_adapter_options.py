"""The choices of VL-PET's adapter site, by name and as the operator's integers."""

import itertools
from typing import Any

from petx._checks import check_choice

# Option -> its values, in the order of the enums in csrc/kernels/gated_adapter.h.
OPTIONS: dict[str, tuple[str | None, ...]] = {
    "granularity": ("none", "large", "middleX", "middleY", "small"),
    "activation": ("gelu_tanh", "gelu"),
    "gate_input": ("modified", "original"),
    "middle_y": ("linear", "sigmoid"),
    "placement": ("sequential", "parallel"),
    "norm": (None, "layer", "rms"),
}
# All choices together -> the operator's integers for them.
CODES = {
    choices: tuple(OPTIONS[name].index(choice) for name, choice in zip(OPTIONS, choices, strict=True))
    for choices in itertools.product(*OPTIONS.values())
}


def check_options(**options: Any) -> None:
    """Raise ValueError for an option outside :data:`OPTIONS`."""
    for name, value in options.items():
        check_choice("gated_adapter", name, value, OPTIONS[name])
