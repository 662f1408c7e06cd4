"""HyperFormer: a network makes every layer's adapters of the task, as in VL-PET's table (arXiv 2106.04489)."""

import functools
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.t5.modeling_t5 import T5LayerNorm

from petx import tasks
from petx.baselines._sizes import ADAPTER_RANK, counts, rank_as_large_as_the_method, read_for_size
from petx.baselines.base import Baseline
from petx.baselines.vl_adapter import PLACES
from petx.errors import UserError
from petx.hosts import Host
from petx.options import option
from petx.tuners.vlpet.hosts import preset_of

KINDS = {"self_attn": "self", "SelfAttention": "self", "encoder_attn": "cross", "EncDecAttention": "cross"}
SCORED_AS_ONE = ("vqa",)  # the task of data in a package without tasks of its own


class HyperFormer(Baseline):
    """HyperFormer: VL-Adapter's places, each adapter made of embeddings of task and layer; norms, visual embedding."""

    name, title, colour, order = "hyperformer", "HyperFormer (bottleneck {rank_used})", "#332288", 42
    methods, lr = ("vlpet",), "lr_hyperformer"
    options = {
        "lr_hyperformer": (float, option(3e-3, "peak learning rate of HyperFormer", above=0)),
        "adapter_rank": ADAPTER_RANK,
        "hyperformer_embedding": (int, option(64, "HyperFormer: width of a task's and a layer's embedding", least=1)),
        "hyperformer_hidden": (int, option(32, "HyperFormer: hidden width of the MLP that joins the two", least=1)),
        "hyperformer_projected": (int, option(8, "HyperFormer: width of what adapters are made of", least=1)),
    }

    def misfit(self, host: type[Host]) -> str | None:
        return None if host.tells_task else "batches that tell their task"

    def reads(self, settings: Any) -> set[str]:
        return super().reads(settings) | (set() if settings.adapter_rank else read_for_size(settings))

    def check(self, settings: Any) -> None:
        if tasks.retrieval(settings):
            raise UserError("arm hyperformer makes adapters of a task that is answered, and retrieval ranks")
        if settings.tasks and tasks.source(settings.data).own_tasks:
            raise UserError(
                f"arm hyperformer has an embedding of each task that is trained, and {settings.data} scores tasks="
                f"{settings.tasks} as one task; leave tasks out"
            )

    def build(self, host: type[Host], model: Any, settings: Any) -> nn.Module:
        def size(rank: int) -> int:
            return counts(host, self._built(host, host.skeleton(model), rank, settings))["trainable"]

        rank = settings.adapter_rank or rank_as_large_as_the_method(host, model, settings, size)
        return self._built(host, model, rank, settings)

    def _built(self, host: type[Host], model: Any, rank: int, settings: Any) -> nn.Module:
        model.requires_grad_(False)
        for module in [*host.always(model), *(one for one in model.modules() if _is_norm(one))]:
            module.requires_grad_(True)
        embedding, parameter = settings.hyperformer_embedding, next(model.parameters())
        with torch.device(parameter.device):
            model.task_adapters = TaskAdapters(
                settings.tasks or list(SCORED_AS_ONE),
                _places(model),
                width=model.get_input_embeddings().weight.shape[1],
                rank=rank,
                sizes=(embedding, settings.hyperformer_hidden, settings.hyperformer_projected),
            )
        for name, (stack, layer, place) in _places(model).items():
            hook = functools.partial(_behind, model.task_adapters, stack, layer, place)
            model.get_submodule(name).register_forward_hook(hook)
        return model

    def counts(self, model: Any) -> dict[str, int]:
        return {"rank_used": model.task_adapters.rank}


class TaskAdapters(nn.Module):
    """The adapters of all places in ``places``, ``{module: (stack, layer, place)}``, for each of ``tasks``.

    With t the task's embedding and l the layer's, both of ``sizes[0]``, a stack has z = norm(MLP([t; l])), of hidden
    width ``sizes[1]`` and width ``sizes[2]``, and each of its places two linears that make D, d and two that make U, u
    of z: h + U gelu(D h + d) + u follows the place's sub-layer. :attr:`task` is the one that a pass is of.
    """

    def __init__(
        self,
        tasks: list[str],
        places: dict[str, tuple[str, int, str]],
        *,
        width: int,
        rank: int,
        sizes: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.tasks, self.rank, self._task = list(tasks), rank, 0
        self.embedding = nn.Parameter(torch.randn(len(tasks), sizes[0]))
        stacks: dict[str, list[tuple[int, str]]] = {}
        for stack, layer, place in places.values():
            stacks.setdefault(stack, []).append((layer, place))
        self.stacks = nn.ModuleDict({name: Hypernetwork(of, width, rank, sizes) for name, of in stacks.items()})

    @property
    def task(self) -> str:
        return self.tasks[self._task]

    @task.setter
    def task(self, name: str) -> None:
        if name not in self.tasks:
            raise UserError(f"task {name!r} has no adapters; it was trained on {', '.join(self.tasks)}")
        self._task = self.tasks.index(name)

    def forward(self, h: torch.Tensor, stack: str, layer: int, place: str) -> torch.Tensor:
        """The modification of ``h [..., width]`` behind one place."""
        down, down_bias, up, up_bias = self.stacks[stack](self.embedding[self._task], layer, place)
        inner = F.gelu(F.linear(h, down.to(h.dtype), down_bias.to(h.dtype)), approximate="tanh")
        return F.linear(inner, up.to(h.dtype), up_bias.to(h.dtype))


class Hypernetwork(nn.Module):
    """What makes the adapters of one stack of layers, see :class:`TaskAdapters`; initial values as in released BART."""

    def __init__(self, places: list[tuple[int, str]], width: int, rank: int, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        embedding, hidden, projected = sizes
        self.width, self.rank = width, rank
        self.layers = nn.Embedding(max(layer for layer, _ in places) + 1, embedding)
        self.project = nn.Sequential(nn.Linear(2 * embedding, hidden), nn.ReLU(), nn.Linear(hidden, projected))
        self.norm = nn.LayerNorm(projected, eps=1e-6)
        made = {"down": rank * width, "down_bias": rank, "up": width * rank, "up_bias": width}
        kinds = sorted({place for _, place in places})
        self.places = nn.ModuleDict(
            {kind: nn.ModuleDict({name: nn.Linear(projected, size) for name, size in made.items()}) for kind in kinds}
        )
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, task: torch.Tensor, layer: int, place: str) -> tuple[torch.Tensor, ...]:
        """``(down [rank, width], its bias, up [width, rank], its bias)`` for the embedding ``task``."""
        z = self.norm(self.project(torch.cat([task, self.layers.weight[layer]])))
        makers: Any = self.places[place]
        down, up = makers["down"](z).view(self.rank, self.width), makers["up"](z).view(self.width, self.rank)
        return down, makers["down_bias"](z), up, makers["up_bias"](z)


def _behind(
    adapters: TaskAdapters, stack: str, layer: int, place: str, module: nn.Module, inputs: Any, h: torch.Tensor
) -> torch.Tensor:
    return h + adapters(h, stack, layer, place)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm | T5LayerNorm)


def _places(model: Any) -> dict[str, tuple[str, int, str]]:
    """``{name: (stack, layer, place)}`` of the last linear of every sub-layer."""
    pattern, found = re.compile(PLACES[preset_of(model.config.model_type) or ""]), {}
    for name, _ in model.named_modules():
        if pattern.fullmatch(name):
            stack, layer = re.search(r"(encoder|decoder)\.\w+\.(\d+)\.", name).groups()  # type: ignore[union-attr]
            place = next((kind for part, kind in KINDS.items() if f".{part}." in name), "feed-forward")
            found[name] = stack, int(layer), place
    return found


BASELINE = HyperFormer()
