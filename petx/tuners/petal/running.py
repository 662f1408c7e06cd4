"""Towers at work: what happens once in a forward pass, and the parts that are hooks and not layers."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from petx.errors import UserError
from petx.functional._operation import autocast_dtype
from petx.nn import QueryTransformation
from petx.tuners._common.mixed import Rows, replaced_forward
from petx.tuners._common.sharded import is_managed, refuse_shards
from petx.tuners._common.threads import OneThread
from petx.tuners.petal.layer import PetalLayer, ProjectionGroup, _state_of, project
from petx.tuners.petal.parts import PetalParts
from petx.tuners.petal.plan import Layer, Tower
from petx.tuners.petal.sharing import Cores, Pass, Recomputed, packing, recomputing, unseen

__all__ = ["ExpertPlace", "RunningTower"]


class RunningTower:
    """One tower of the model: its projections, and its current forward pass.

    Within a pass all cores are made by one product, and an input that several attentions project is projected once,
    for checkpointed layers too: what they share is made unseen by the checkpoint around, and a layer that is recomputed
    gets the values again. Under a reentrant checkpoint, which runs its layer without gradients first, a group does all
    of that for itself.
    """

    def __init__(self, spec: Tower, parts: Any) -> None:
        self.spec = spec
        self.parts: dict[str, PetalParts] = parts  # the model's ModuleDict, by adapter name
        self.groups = [ProjectionGroup(group, self) for group in spec.groups]
        self.tails = [LayerTail(self, i, layer) for i, layer in enumerate(spec.layers)]
        self._pass: Pass | None = None
        self._recomputed = Recomputed()
        self._arguments: tuple[str, ...] = ()  # names of the tower's positional arguments
        self._hooks: list[RemovableHandle] = []

    def adapter(self) -> str | None:
        """Name of the adapter that works in this tower now, or None."""
        return self.groups[0].layers[0].current()

    # ---- the current pass ----

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._pass = Pass(dict(zip(self._arguments, args, strict=False)) | kwargs)
        if is_managed(self.groups[0].layers[0]) and (adapter := self.adapter()) is not None:
            _check_gathered(self.parts[adapter], f"the tower {self.spec.root}")

    def _end(self, *_: Any) -> None:
        self._pass = None

    def _current(self) -> Pass | None:
        found = self._pass
        return found if found is not None and found.shares() else None

    def cores(self, adapter: str, group: ProjectionGroup, layers: list[PetalLayer]) -> torch.Tensor:
        """Cores ``[K, R, R]`` or ``[K, R]`` of the mode vectors of ``layers``, which belong to ``group``."""
        parts, current = self.parts[adapter], self._current()
        owner = parts.core_of[group.spec.factors]
        if is_managed(layers[0]) or current is None and not packing():
            return parts.cores(owner, torch.stack([layer.petal_mode[adapter] for layer in layers]))
        made = None if current is None else current.cores.get((adapter, owner))
        if made is None:
            made = self._all_cores(adapter, owner, current)
        own = made.parts[group.spec]
        if len(layers) == len(group.layers):
            return own
        first = group.layers.index(layers[0])
        return own[first : first + 1]

    def _all_cores(self, adapter: str, owner: str, current: Pass | None) -> Cores:
        """Cores of all groups that use the core of the factors ``owner``."""
        parts = self.parts[adapter]
        sharing = [other for other in self.groups if parts.core_of[other.spec.factors] == owner]
        modes = [layer.petal_mode[adapter] for other in sharing for layer in other.layers]
        factors: Any = parts.factors[owner]
        key, sources = (adapter, owner), [*factors.cores.parameters(), *modes]
        if current is None and recomputing():
            made = self._recomputed.cores(key, sources)
            if made is not None:
                return made
        outside = current is None or not current.is_here()
        with unseen() if outside else nullcontext():
            whole = parts.cores(owner, torch.stack(modes))
            made = Cores(whole, {other.spec: len(other.layers) for other in sharing})
        if current is not None:
            current.cores[key] = made
            if outside:
                self._recomputed.keep_cores(key, sources, made)
        return made

    def projected(
        self, adapter: str, factors: str, x: torch.Tensor, u: torch.Tensor, compiling: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``x Uᵀ`` and None if that is computed once for several groups, else ``x`` and ``u`` themselves."""
        if compiling:
            return project(x, u), None  # equal products, which the compiler makes one
        current, key = self._current(), (adapter, factors, autocast_dtype(x))
        if current is None:
            again = packing() and (self._recomputed.shares(key) or self._recomputed.has_seen(x))
            return self._projected_again(key, x, u) if again else (x, u)
        here, given = current.is_here(), current.was_given(x)
        if not here:
            self._recomputed.keep_shares(key, given)
            if not given:
                return x, u  # the checkpointed layer's own, to be dropped with it
        state = _state_of(x)
        held = current.projected.get(key)
        if held is None or held[0] is not x or held[1] != state:
            with nullcontext() if here else unseen():
                held = current.projected[key] = (x, state, project(x, u))
        if not here:
            self._recomputed.keep_projected(key, x, [u], held[2])
        return held[2], None

    def _projected_again(self, key: Any, x: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, None]:
        value = self._recomputed.projected(key, x, [u]) if recomputing() else None
        if value is None:
            with unseen():
                value = project(x, u)
        return value, None

    def copies(
        self, adapter: str, group: ProjectionGroup, x: torch.Tensor, u: torch.Tensor | None, v: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor] | None:
        """``u``, ``v`` and the cores of all layers of ``group`` in the dtype in which an update of ``x`` is computed,
        made once per pass; None if they have it, or outside of a pass."""
        current, dtype = None if torch.compiler.is_compiling() else self._current(), autocast_dtype(x)
        key = adapter, self.parts[adapter].core_of[group.spec.factors]
        if current is None:
            return None
        made = current.cores.get(key)
        if made is None or all(tensor.dtype == dtype for tensor in (v, made.whole)):
            return None
        first, count = made.places[group.spec]
        cores = current.copy(made.whole, dtype)[first : first + count]
        return None if u is None else current.copy(u, dtype), current.copy(v, dtype), cores

    def seed(self, group: ProjectionGroup, device: torch.device) -> torch.Tensor | None:
        """The key of the dropout of ``group``, or None for the operation to draw one."""
        current = None if torch.compiler.is_compiling() else self._current()
        return None if current is None else current.seed(group.spec, [other.spec for other in self.groups], device)

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
            *OneThread().connect(root),
        ]
        for group in self.groups:
            if len(group.layers) > 1:
                group.lay_together()
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


class LayerTail:
    """The residuals of one layer's query transformation, and the context of its cross-attention.

    What the self-attention block returned, A, is added to the output of the layer's feed-forward modules. These get its
    rows one after the other: first the query tokens', then the text tokens', each in chunks if the host is set so.
    (Not to the layer's own output: transformers checkpoints a layer's forward, and hooks on the layer stay outside.)
    """

    def __init__(self, tower: RunningTower, index: int, spec: Layer) -> None:
        self.tower, self.index, self.spec = tower, index, spec
        # Of the running layer, as it was when its self-attention had run:
        self._part: QueryTransformation | None = None
        self._cross_part: QueryTransformation | None = None  # that of the cross-attention
        self._rows: torch.Tensor | None = None  # rows ``[B, L, d]`` of A, not yet added

    def connect(self, model: nn.Module) -> list[RemovableHandle]:
        hooks = [model.get_submodule(self.spec.attention).register_forward_hook(self._keep)]
        for path in self.spec.tails:
            receive = self._add_to_queries if path == self.spec.query_tail else self._add
            hooks.append(model.get_submodule(path).register_forward_hook(receive, prepend=True))
        if self.spec.cross is not None:
            cross = model.get_submodule(self.spec.cross)
            hooks.append(cross.register_forward_hook(self._enhance, with_kwargs=True, prepend=True))
        return hooks

    def _keep(self, module: nn.Module, args: tuple, output: Any) -> None:
        tower, adapter = self.tower, self.tower.adapter()
        parts = None if adapter is None else tower.parts[adapter]
        self._part = part = None if parts is None else parts.transformation(tower.spec, self.index)
        self._cross_part = None if parts is None else parts.transformation(tower.spec, self.index, cross=True)
        self._rows = None if part is None else _first(output)

    def _add(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        rows, part = self._rows, self._part
        if rows is None or part is None:
            return None
        count, rest = output.shape[1], rows.shape[1] - output.shape[1]
        if rest > 0:
            rows, self._rows = rows.split([count, rest], 1)  # whose backward is one cat
        else:
            self._rows = None
        return part(rows, output)

    def _add_to_queries(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        part, added = self._cross_part, self._add(module, args, output)
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
        return self.__dict__ | dict.fromkeys(("_part", "_cross_part", "_rows"))


def _check_gathered(parts: PetalParts, where: str) -> None:
    """Raise UserError if FSDP does not hold ``parts`` as the model's own unit does, whole in all of its pass."""
    if not is_managed(parts):
        raise UserError(
            f"PETAL: FSDP shards the layers of {where}, but not the model, so the gradients of what the layers share "
            "would not be summed over the processes: after the layers call fully_shard on the model itself"
        )
    refuse_shards("PETAL", where, parts.named_parameters())


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

    def _mix(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if not isinstance(output, torch.Tensor):  # a ModelOutput, with the projected image as its last hidden state
            if not isinstance(getattr(output, "last_hidden_state", None), torch.Tensor):
                got = type(output).__name__
                raise UserError(f"PETAL: experts read a tensor, and {self.path} returns {got}; name another projector")
            mixed = self._mix(module, args, output.last_hidden_state)
            return None if mixed is None else type(output)(**{**output, "last_hidden_state": mixed})
        working = ((tower, tower.adapter()) for tower in self.towers.values())
        parts = next((tower.parts[adapter] for tower, adapter in working if adapter is not None), None)
        if parts is None or parts.experts is None or self.path not in parts.mixed:
            return None
        if is_managed(parts):
            _check_gathered(parts, self.path)
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
