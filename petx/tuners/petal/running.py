"""Towers at work: what happens once in a forward pass, and the parts that are hooks and not layers."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from petx.tuners._common.mixed import Rows, replaced_forward
from petx.tuners.petal.layer import PetalLayer, ProjectionGroup, _state_of, project
from petx.tuners.petal.parts import PetalParts
from petx.tuners.petal.plan import Group, Layer, Tower

__all__ = ["ExpertPlace", "RunningTower"]


class RunningTower:
    """One tower of the model: its projections, and its current forward pass.

    Within a pass all cores are made by one product, and an input that several attentions project is projected once.
    Where autograd's state differs from the pass's, as inside a checkpointed layer and when one is recomputed, a group
    does that for itself, so that the recomputation repeats exactly what was done.
    """

    def __init__(self, spec: Tower, parts: Any) -> None:
        self.spec = spec
        self.parts: dict[str, PetalParts] = parts  # the model's ModuleDict, by adapter name
        self.groups = [ProjectionGroup(group, self) for group in spec.groups]
        self.tails = [LayerTail(self, i, layer) for i, layer in enumerate(spec.layers)]
        self._pass: _Pass | None = None
        self._arguments: tuple[str, ...] = ()  # names of the tower's positional arguments
        self._hooks: list[RemovableHandle] = []

    def adapter(self) -> str | None:
        """Name of the adapter that works in this tower now, or None."""
        return self.groups[0].layers[0].current()

    # ---- the current pass ----

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._pass = _Pass(dict(zip(self._arguments, args, strict=False)) | kwargs)

    def _end(self, *_: Any) -> None:
        self._pass = None

    def _current(self) -> "_Pass | None":
        found = self._pass
        return found if found is not None and found.state == _autograd_state() else None

    def cores(self, adapter: str, group: ProjectionGroup, layers: list[PetalLayer]) -> torch.Tensor:
        """Cores ``[K, R, R]`` or ``[K, R]`` of the mode vectors of ``layers``, which belong to ``group``."""
        parts, current = self.parts[adapter], self._current()
        if current is None:
            return parts.cores(group.spec.factors, torch.stack([layer.petal_mode[adapter] for layer in layers]))
        owner = parts.core_of[group.spec.factors]
        made = current.cores.get((adapter, owner))
        if made is None:
            sharing = [other for other in self.groups if parts.core_of[other.spec.factors] == owner]
            modes = [layer.petal_mode[adapter] for other in sharing for layer in other.layers]
            split = parts.cores(owner, torch.stack(modes)).split([len(other.layers) for other in sharing])
            made = current.cores[adapter, owner] = dict(zip([other.spec for other in sharing], split, strict=True))
        own = made[group.spec]
        if len(layers) == len(group.layers):
            return own
        first = group.layers.index(layers[0])
        return own[first : first + 1]

    def projected(
        self, adapter: str, factors: str, x: torch.Tensor, u: torch.Tensor, compiling: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``x Uᵀ`` and None if that is computed once for several groups, else ``x`` and ``u`` themselves."""
        if compiling:
            return project(x, u), None  # equal products, which the compiler makes one
        current = self._current()
        if current is None:
            return x, u
        key, state = (adapter, factors), _state_of(x)
        held = current.projected.get(key)
        if held is None or held[0] is not x or held[1] != state:
            held = current.projected[key] = (x, state, project(x, u))
        return held[2], None

    def tokens(self, length: int) -> tuple[int, torch.Tensor | None]:
        """Number of query tokens of the current pass, and its padding mask ``[B, length]`` or None."""
        found = self._pass
        if found is None:
            return 0, None
        mask = found.mask
        return found.queries, mask if mask is not None and mask.dim() == 2 and mask.shape[1] == length else None

    # ---- hooks ----

    def connect(self, model: nn.Module) -> None:
        # Hooks are bound methods, so that deepcopy of the whole model copies the connection too. All of them run inside
        # the layers, which is what gradient checkpointing recomputes.
        root = model.get_submodule(self.spec.root)
        self._arguments = tuple(inspect.signature(root.forward).parameters)
        self._hooks = [
            root.register_forward_pre_hook(self._begin, with_kwargs=True),
            root.register_forward_hook(self._end, always_call=True),
        ]
        for group in self.groups:
            if len(group.layers) > 1:
                attention = model.get_submodule(group.spec.attention)
                self._hooks.append(attention.register_forward_hook(group.forget, always_call=True))
        for tail in self.tails:
            self._hooks += tail.connect(model)

    def disconnect(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    # ---- batches of several adapters ----

    @contextmanager
    def mixed(self, model: nn.Module, rows: Rows) -> Iterator[None]:
        """Within this, every row of the tower's batch is computed by its adapter."""
        root = model.get_submodule(self.spec.root)
        layers = [layer for group in self.groups for layer in group.layers]
        active, run = [layer._active_adapter for layer in layers], root.forward

        def call(name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
            for layer in layers:
                layer._active_adapter = [name]
            self._begin(root, args, kwargs)
            return run(*args, **kwargs)

        try:
            with replaced_forward(root, lambda *args, **kwargs: rows.run(call, args, kwargs)):
                yield
        finally:
            for layer, before in zip(layers, active, strict=True):
                layer._active_adapter = before

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pass": None}


class _Pass:
    """What belongs to one forward pass of a tower."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.state = _autograd_state()
        self.cores: dict[tuple[str, str], dict[Group, torch.Tensor]] = {}  # (adapter, factors) -> {group: cores}
        self.projected: dict[
            tuple[str, str], tuple[torch.Tensor, object, torch.Tensor]
        ] = {}  # (adapter, factors) -> (x, its state, x Uᵀ)
        queries = given.get("query_length")
        if queries is None:
            embedded = given.get("query_embeds")
            queries = 0 if embedded is None else embedded.shape[1]
        self.queries = queries
        self.mask = given.get("attention_mask")


_saved_tensor_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def _autograd_state() -> object:
    """Equal if what is computed in one place can be used in another; never equal if that cannot be told."""
    if torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    if _saved_tensor_hooks is None:
        return object()
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), _saved_tensor_hooks(True)


class LayerTail:
    """The residuals of one layer's query transformation, and the context of its cross-attention.

    What the self-attention block returned, A, is added to the output of the layer's feed-forward modules. These get its
    rows one after the other: first the query tokens', then the text tokens', each in chunks if the host is set so.
    """

    def __init__(self, tower: RunningTower, index: int, spec: Layer) -> None:
        self.tower, self.index, self.spec = tower, index, spec
        self._rows: torch.Tensor | None = None  # A ``[B, L, d]`` of the running layer
        self._next = 0  # first row that was not yet added

    def connect(self, model: nn.Module) -> list[RemovableHandle]:
        hooks = [model.get_submodule(self.spec.attention).register_forward_hook(self._keep)]
        for path in self.spec.tails:
            receive = self._add_to_queries if path == self.spec.query_tail else self._add
            hooks.append(model.get_submodule(path).register_forward_hook(receive, prepend=True))
        if self.spec.cross is not None:
            cross = model.get_submodule(self.spec.cross)
            hooks.append(cross.register_forward_hook(self._enhance, with_kwargs=True, prepend=True))
        return hooks

    def _part(self, cross: bool = False) -> nn.Module | None:
        adapter = self.tower.adapter()
        return None if adapter is None else self.tower.parts[adapter].transformation(self.tower.spec, self.index, cross)

    def _keep(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._rows, self._next = (None if self._part() is None else _first(output)), 0

    def _add(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        rows, part = self._rows, self._part()
        if rows is None or part is None:
            return None
        until = self._next + output.shape[1]
        own = rows[:, self._next : until] if output.shape[1] < rows.shape[1] else rows
        self._next = until
        if until >= rows.shape[1]:
            self._rows = None
        return part(own, output)

    def _add_to_queries(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        part, added = self._part(cross=True), self._add(module, args, output)
        if part is None:
            return added
        return part(args[1], output if added is None else added)

    def _enhance(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        adapter = self.tower.adapter()
        if adapter is None or self.tower.parts[adapter].context.context == "off":
            return None
        queries = args[0] if args else kwargs["hidden_states"]
        return self.tower.parts[adapter].context(output, queries)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rows": None, "_next": 0}


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


class ExpertPlace:
    """A module whose output the experts read and change: a Q-Former's embeddings, a projector, word embeddings."""

    def __init__(self, path: str, kind: str, towers: dict[str, RunningTower]) -> None:
        self.path, self.kind = path, kind  # kind: "qformer", "image" or "text"
        self.towers = towers  # the model's, path -> RunningTower; an adapter works in some of them
        self._hooks: list[RemovableHandle] = []

    def connect(self, model: nn.Module) -> None:
        self._hooks = [model.get_submodule(self.path).register_forward_hook(self._mix, prepend=True)]

    def disconnect(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _mix(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        working = ((tower, tower.adapter()) for tower in self.towers.values())
        parts = next((tower.parts[adapter] for tower, adapter in working if adapter is not None), None)
        if parts is None or parts.experts is None or self.path not in parts.mixed:
            return None
        if self.kind != "qformer":
            return parts.experts(output)
        batch, length = output.shape[:2]
        scope = pool = None
        if parts.expert_scope == "text" or parts.experts.gate == "sample":
            own = next(tower for root, tower in self.towers.items() if self.path.startswith(f"{root}."))
            queries, padding = own.tokens(length)
            text = (torch.arange(length, device=output.device) >= queries).expand(batch, length)
            scope = text if parts.expert_scope == "text" else None
            if queries < length:  # the gate reads the instruction if there is one, else the queries
                pool = text if padding is None else text & padding.ne(0)
        return parts.experts(output, scope, pool)
