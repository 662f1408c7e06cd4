"""What a tower's projections share within one forward pass: cores, projected inputs, lower-precision copies, seeds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Pass", "Recomputed", "packing", "recomputing", "unseen"]

_top_hooks: Callable[[bool], Any] | None = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


class Pass:
    """What belongs to one forward pass of a tower, whose arguments by name are ``given``."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.state = autograd_state()
        self.cores: dict[Any, Cores] = {}  # (adapter, factors) -> those of all groups
        self.projected: dict[Any, Any] = {}  # (adapter, factors, dtype) -> (x, its state, x Uᵀ)
        self.seeds: dict[Any, Tensor] | None = None  # group -> the seed of its dropout, until it is taken
        self._copies: dict[Any, tuple[Tensor, Tensor]] = {}
        self._given = given

    @property
    def queries(self) -> int:
        """Number of query tokens."""
        queries, embedded = self._given.get("query_length"), self._given.get("query_embeds")
        if queries is None:
            queries = 0 if embedded is None else embedded.shape[1]
        return queries

    @property
    def mask(self) -> Tensor | None:
        return self._given.get("attention_mask")

    def was_given(self, x: Tensor) -> bool:
        """Whether ``x`` is an argument of the pass, which lives as long as the pass does."""
        return any(x is value for value in self._given.values())

    def shares(self) -> bool:
        """Whether what is computed here may be used elsewhere in the pass: also inside a checkpointed layer whose
        tensors are merely packed, and nowhere else where autograd's state is not the pass's."""
        state = autograd_state()
        return state is not None and self.state is not None and state[:2] == self.state[:2]

    def is_here(self) -> bool:
        """Whether autograd's state is the pass's, its hooks on saved tensors too."""
        return self.state is not None and autograd_state() == self.state

    def copy(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """``tensor`` in ``dtype``, without its graph: made once per pass."""
        if tensor.dtype == dtype:
            return tensor
        key = (id(tensor), dtype)
        if key not in self._copies:
            self._copies[key] = tensor, tensor.detach().to(dtype)  # the first keeps the id taken
        return self._copies[key][1]

    def seed(self, group: Any, groups: list[Any], device: torch.device) -> Tensor | None:
        """The dropout's seed for the first use of ``group``, all groups' drawn at once; None for a later one.

        And None in a checkpointed layer, which repeats the draws that it made itself.
        """
        if not self.is_here():
            return None
        if self.seeds is None:
            drawn = torch.randint(2**62, (len(groups),), dtype=torch.int64, device=device).split(1)
            self.seeds = dict(zip(groups, drawn, strict=True))
        return self.seeds.pop(group, None)


class Cores:
    """Cores ``[n, R, R]`` or ``[n, R]`` of all groups with one core tensor; ``counts``: group -> how many it has."""

    def __init__(self, whole: Tensor, counts: dict[Any, int]) -> None:
        self.whole, self._counts = whole, counts
        self.parts = dict(zip(counts, whole.split(list(counts.values())), strict=True))  # whose backward is one cat
        starts = itertools.accumulate(counts.values(), initial=0)
        self.places = {group: (start, counts[group]) for group, start in zip(counts, starts, strict=False)}

    def values(self) -> Cores:
        """The same without their graph."""
        return Cores(_value(self.whole), self._counts)


class Recomputed:
    """Values of the last passes for layers that are recomputed in the backward: only values count there.

    A value is handed out if the tensors that it was made of are unchanged, else it is computed again.
    """

    def __init__(self) -> None:
        self._cores: dict[Any, Any] = {}
        self._shares: set[Any] = set()  # (adapter, factors, dtype) that the last pass projected once for all layers
        self._projected = WeakTensorKeyDictionary()  # x -> {(adapter, factors, dtype): (versions, x Uᵀ)}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Recomputed, ()  # a copy of the model, or a file of it, begins anew

    def keep_cores(self, key: Any, sources: list[Tensor], cores: Cores) -> None:
        self._cores[key] = versions(sources), cores.values()

    def cores(self, key: Any, sources: list[Tensor]) -> Cores | None:
        made, values = self._cores.get(key, (None, None))
        return values if made is not None and made == versions(sources) else None

    def keep_shares(self, key: Any, given: bool) -> None:
        (self._shares.add if given else self._shares.discard)(key)

    def shares(self, key: Any) -> bool:
        """Whether a layer found its input projected, which then has to be so again, whatever tensor it gets now: hooks
        around that pack what is saved (save_on_cpu, another checkpoint) pack the layer's inputs, too."""
        return key in self._shares

    def has_seen(self, x: Tensor) -> bool:
        return x in self._projected

    def keep_projected(self, key: Any, x: Tensor, sources: list[Tensor], value: Tensor) -> None:
        self._projected.setdefault(x, {})[key] = versions([x, *sources]), _value(value)

    def projected(self, key: Any, x: Tensor, sources: list[Tensor]) -> Tensor | None:
        made, value = self._projected.get(x, {}).get(key, (None, None))
        return value if made is not None and made == versions([x, *sources]) else None


def versions(tensors: list[Tensor]) -> list[Any]:
    """Equal for the same tensors with the same values."""
    return [(id(t), t._version) if not t.is_inference() else object() for t in tensors]


def _value(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def autograd_state() -> tuple[Any, ...] | None:
    """Gradients, inference mode and the hooks on saved tensors; None where they cannot be told, equal to nothing."""
    if torch.compiler.is_compiling():
        return torch.is_grad_enabled(), False, None
    if _top_hooks is None:
        return None
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), _top_hooks(True)


def packing() -> bool:
    """Whether saved tensors go through hooks here, as in a layer that is checkpointed or recomputed."""
    return not torch.compiler.is_compiling() and _top_hooks is not None and _top_hooks(True) is not None


def recomputing() -> bool:
    """Whether a non-reentrant checkpoint recomputes a layer here."""
    if not packing() or _top_hooks is None:
        return False
    return "_recomputation_hook" in getattr(_top_hooks(True)[0], "__qualname__", "")


@contextmanager
def unseen() -> Iterator[None]:
    """What is saved in here for the backward stays as it is: no checkpoint around drops it, or awaits it again.

    For small tensors made of parameters, and for what exists anyway.
    """
    if not packing():
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(_same, _same):
        yield


def _same(tensor: Tensor) -> Tensor:
    return tensor
