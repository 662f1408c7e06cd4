"""Where PETAL goes in a given model: found and checked before anything is changed."""

import re
from typing import Any

from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from petx.errors import UserError
from petx.tuners._common.paths import base_of, covered, parents, plain_modules
from petx.tuners.petal.config import PetalConfig
from petx.tuners.petal.hosts import default_towers, find_projector
from petx.tuners.petal.plan import Plan
from petx.tuners.petal.towers import Modules, find_root, find_tower, layers_read

__all__ = ["find_places"]


def find_places(model: nn.Module, config: PetalConfig) -> Plan:
    """:class:`Plan` of ``config`` in ``model``; fills ``config.towers`` if it names none.

    Raises UserError if a tower does not exist or has no attention that can be adapted, or a part that ``config``
    asks for has no place in the model.
    """
    modules = {
        path: module
        for path, module in plain_modules(model).items()
        if not re.search(r"(^|\.)(original_module|modules_to_save|petal_\w+|base_layer)(\.|$)", path)
    }
    if config.towers is None:
        config.towers = default_towers(model, modules)
    plan = Plan()
    for name in config.towers:
        root = find_root(model, modules, name)
        plan.towers[name] = find_tower(name, root, modules, layers_read(model, root, modules))
    _check_parts(plan, config)
    if config.image_rank is not None and all(group.factors != "image" for group in plan.groups):
        raise UserError(
            f"PETAL: image_rank={config.image_rank} is for a Q-Former's cross-attention, and there is none in "
            f"{', '.join(tower.root for tower in plan.towers.values())}"
        )
    if config.experts:
        _place_experts(model, modules, plan, config)
    for path in (*plan.paths, *plan.mixed):
        for part in (*parents(path), path):
            if isinstance(modules[part], AuxiliaryTrainingWrapper) or covered(part, config.modules_to_save or ()):
                raise UserError(
                    f"PETAL: {path} is adapted and belongs to modules_to_save; what is trained whole cannot be adapted"
                )
    return plan


def _check_parts(plan: Plan, config: PetalConfig) -> None:
    for tower in plan.towers.values():
        if config.query_transform and not tower.layers:
            raise UserError(
                f"PETAL: {tower.root} has no layers of a self-attention and an `mlp`, which query_transform needs; "
                "set query_transform=False"
            )
        for name, wanted in (("cross_query_transform", config.cross_query_transform), ("context", config.context)):
            if wanted not in (False, "off") and tower.kind != "qformer":
                raise UserError(f"PETAL: {name}={wanted!r} needs query tokens, and {tower.root} is no Q-Former")


def _place_experts(model: Any, modules: Modules, plan: Plan, config: PetalConfig) -> None:
    qformer = next((tower for tower in plan.towers.values() if tower.kind == "qformer"), None)
    if qformer is not None:
        if config.projector is not None:
            raise UserError(
                f"PETAL: projector={config.projector!r} is for models without a Q-Former; the experts read "
                f"{qformer.root}'s embeddings"
            )
        embedded = f"{qformer.root}.embeddings"
        place = embedded if embedded in modules else f"{qformer.root}.dropout"
        if place not in modules or config.expert_scope == "image":
            why = "expert_scope='image' is for models without a Q-Former" if place in modules else "no embeddings found"
            raise UserError(f"PETAL: the experts have no place in {qformer.root}: {why}")
        if config.expert_scope == "text" and not _reads_text(model, embedded in modules):
            raise UserError(
                f"PETAL: with expert_scope='text' the experts would never train, since {qformer.root} reads no text; "
                "use expert_scope='all' or experts=0"
            )
        plan.mixed, plan.width = {place: "qformer"}, qformer.layers[0].width
        return
    root = next(iter(plan.towers.values())).root
    words = next((p for p, m in modules.items() if m is base_of(model.get_input_embeddings())), None)
    if words is None:
        raise UserError(
            f"PETAL: experts read the word embeddings, which are not in {type(model).__name__}; set experts=0"
        )
    if config.expert_gate == "sample" and config.expert_scope != "image":
        raise UserError(
            "PETAL: expert_gate='sample' averages over a sample's tokens, and in a decoder these are the answer's too; "
            "use expert_scope='image' or expert_gate='token'"
        )
    embedding: Any = modules[words]
    plan.width = embedding.weight.shape[1]
    if config.expert_scope in ("all", "image"):
        plan.mixed[find_projector(model, modules, root, config.projector)] = "image"
    if config.expert_scope in ("all", "text"):
        plan.mixed[words] = "text"


def _reads_text(model: nn.Module, has_embeddings: bool) -> bool:
    settings = getattr(getattr(model, "config", None), "qformer_config", None)
    return bool(getattr(settings, "use_qformer_text_input", has_embeddings))
