"""What PETAL adapted: as a list, and in words."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from petx.tuners._common.report import adapter_named, count, last_line, own_counter, tuner_of
from petx.tuners.petal.layer import PetalLayer
from petx.tuners.petal.parts import PetalParts

__all__ = ["Adapted", "adapted", "describe", "parameter_counts", "unmergeable"]


@dataclass(frozen=True)
class Adapted:
    """One adapted place: a projection, what the experts read, a layer with a query transformation, a trained module."""

    path: str
    kind: str
    parameters: int  # of its own; shared factors and experts are counted once, by parameter_counts
    factors: str | None = None  # name of the shared factors a projection uses
    rank: int | None = None


def adapted(model: nn.Module, adapter_name: str | None = None) -> list[Adapted]:
    """What one adapter of ``model`` (a PEFT model or its tuner) consists of, with paths in the frozen model.

    Returns a list of :class:`Adapted`: projections in the model's order, query transformations, what the experts read,
    modules trained whole. ``adapter_name`` defaults to the active adapter.
    """
    name, tuner = adapter_named(model, adapter_name), tuner_of(model)
    parts = tuner.petal_shared[name]
    projections, trained = [], []
    for path, module in tuner.model.named_modules():
        if isinstance(module, PetalLayer) and name in module.petal_mode:
            mode = module.petal_mode[name]
            projections.append(Adapted(path, module.kind, mode.numel(), module.group.spec.factors, mode.numel()))
        elif isinstance(module, AuxiliaryTrainingWrapper) and name in module.modules_to_save:
            trained.append(Adapted(path, "module trained whole", count(module.modules_to_save[name])))
    layers = []
    for tower in tuner._towers.values():
        for tail in tower.tails:
            for cross, kind in ((False, "query transformation"), (True, "cross query transformation")):
                part = parts.transformation(tower.spec, tail.index, cross)
                if part is not None:
                    layers.append(Adapted(tail.spec.path, kind, count(part)))
    mixed = [Adapted(path, "expert mixture", 0) for path in parts.mixed if parts.experts is not None]
    return projections + layers + mixed + trained


def parameter_counts(model: nn.Module, adapter_name: str | None = None) -> dict[str, int | float | None]:
    """Parameters by part: name -> number, ending with trainable, total and percent.

    ``text`` are the factors and core of a Q-Former's hidden states, ``image`` those of image features, ``other`` those
    of other towers. ``total`` is the frozen model plus the new parts; the copies that PEFT keeps of modules trained
    whole are the model's own, so they count once. ``qformer_percent`` is the share in the model's Q-Former, and
    ``trained_percent`` that in what InstructBLIP and BLIP-2 train themselves: Q-Former, queries, language projection
    and the image encoder's last norm; both are None for other models.
    """
    name, tuner = adapter_named(model, adapter_name), tuner_of(model)
    parts, places = tuner.petal_shared[name], adapted(model, name)
    counts: dict[str, Any] = {
        key: count(parts.factors[key]) if key in parts.factors else 0 for key in ("text", "image")
    }
    counts["other"] = count(parts.factors) - sum(counts.values())
    counts["modes"] = sum(place.parameters for place in places if place.rank is not None)
    counts["query_transform"] = count(parts.query_transform) + count(parts.cross_query_transform)
    counts["experts"] = count(parts.experts)
    new = sum(counts.values())
    counts["whole"] = sum(place.parameters for place in places if place.kind == "module trained whole")
    counts["trainable"] = new + counts["whole"]
    own = own_counter(tuner.model)
    counts["total"] = own(tuner.model) + new
    counts["percent"] = 100 * counts["trainable"] / counts["total"]
    counts["trained_percent"] = counts["qformer_percent"] = None
    if isinstance(qformer := getattr(tuner.model, "qformer", None), nn.Module):
        last_norm = getattr(getattr(tuner.model, "vision_model", None), "post_layernorm", None)
        trained = own(qformer) + own(getattr(tuner.model, "language_projection", None)) + own(last_norm)
        trained += getattr(tuner.model, "query_tokens", torch.empty(0)).numel()
        counts["trained_percent"] = 100 * counts["trainable"] / trained
        counts["qformer_percent"] = 100 * counts["trainable"] / own(qformer)
    return counts


def unmergeable(parts: PetalParts) -> list[str]:
    """What of an adapter cannot be folded into the frozen weights, in words."""
    found = ["its experts"] if parts.experts is not None else []
    if len(parts.query_transform) or len(parts.cross_query_transform):
        found.append("its query transformations")
    if parts.context.context != "off":
        found.append("its context enhancement")
    return found


def describe(model: nn.Module, adapter_name: str | None = None) -> str:
    """What PETAL adapted in ``model`` (a PEFT model or its tuner), in words; :func:`adapted` gives it as a list."""
    name, tuner = adapter_named(model, adapter_name), tuner_of(model)
    parts, places, counts = tuner.petal_shared[name], adapted(model, name), parameter_counts(model, name)
    config = tuner.peft_config[name]
    lines = [f"PETAL adapter {name!r} in {', '.join(config.towers)}:"]
    for key, factors in parts.factors.items():
        widths = " and ".join(factors.v)
        core = f"the core of {parts.core_of[key]!r}"
        if factors.cores is not None:
            shape = f"core {' x '.join([str(factors.rank)] * factors.cores.core.dim())}"
            core = shape + (f", {factors.cores.gate} threshold" if factors.cores.gate != "none" else "")
        core += f", {factors.gate} threshold on the update's entries" if factors.gate != "none" else ""
        lines.append(
            f"  factors {key!r}, shared by all: rank {factors.rank}, {factors.u.shape[1]} -> {widths}, {core}: "
            f"{count(factors):,} parameters"
        )
    if parts.form == "explicit":
        lines.append("  explicit: every adapted weight is written out in each pass, and gets a gradient of its size")
    projections = Counter((p.kind, p.factors, p.parameters) for p in places if p.rank is not None)
    for (kind, of, own), number in projections.items():
        lines.append(f"  {number} x {kind}, by factors {of!r}: {number * own:,} parameters")
    for tower in (one for one in tuner._towers.values() if one.spec.name in config.towers):
        names = Counter(path.rpartition(".")[2] for path in tower.spec.fused)
        lines += [
            f"  {n} x {linear} of {tower.spec.root}: query, key and value in one, left as they are"
            for linear, n in names.items()
        ]
    lines += _together(tuner, name) if parts.form != "explicit" else []
    for kind in ("query transformation", "cross query transformation", "module trained whole"):
        some = [place.parameters for place in places if place.kind == kind]
        if some:
            lines.append(f"  {len(some)} x {kind}: {sum(some):,} parameters")
    if parts.experts is not None:
        experts = parts.experts
        words = f"{experts.experts} experts of rank {experts.rank}, {experts.gate} gate"
        words += f", the best {experts.top_k}" if experts.top_k else ""
        read = {"all": "all tokens", "text": "text tokens", "image": "image tokens"}[parts.expert_scope]
        lines.append(
            f"  {words}, read {read} of {' and '.join(parts.mixed)}: {experts.alpha:g} x + {experts.beta:g} mixture: "
            f"{count(experts):,} parameters"
        )
    if parts.context.context != "off":
        what = {"batch_mean": "the batch's mean (couples its samples)", "per_sample": "the sample's mean"}
        lines.append(f"  context for the first query token: {parts.context.weight:g} x {what[parts.context.context]}")
    lines.append(last_line(counts))
    return "\n".join(lines)


def _together(tuner: Any, name: str) -> list[str]:
    """Lines that say where the frozen projections of one input are one GEMM, and why they are not elsewhere."""
    groups = [group for tower in tuner._towers.values() for group in tower.groups if len(group.layers) > 1]
    reasons = Counter(group.obstacle() for group in groups if name in group.layers[0].petal_mode)
    count = reasons.pop(None, 0)
    lines = [f"  fused: {count} x the frozen projections of one input are one GEMM"] if count else []
    return lines + [f"  not fused: {number} x projections of one input: {why}" for why, number in reasons.items()]
