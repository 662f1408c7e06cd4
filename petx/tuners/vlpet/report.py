"""What was adapted: as a list, and in words."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from petx.tuners._common.report import adapter_named, count, last_line, own_counter, tuner_of
from petx.tuners.vlpet.layer import VLPetLayer

__all__ = ["Adapted", "adapted", "describe", "parameter_counts"]


@dataclass(frozen=True)
class Adapted:
    """One adapted place: a site (``kind`` "encoder attention", ...) or a module trained whole ("trained norm", ...)."""

    path: str
    kind: str
    parameters: int
    gate_parameters: int = 0
    granularity: str | None = None
    rank: int | None = None
    heads: int | None = None
    gate_rank: int | None = None
    design: str | None = None
    modification: str | None = None
    scale: float | None = None


def adapted(model: nn.Module, adapter_name: str | None = None) -> list[Adapted]:
    """What one adapter of ``model`` (a PEFT model or its tuner) consists of: its sites, then the modules trained whole.

    Returns a list of :class:`Adapted`, with paths in the frozen model; ``adapter_name`` defaults to the active adapter.
    """
    adapter_name = adapter_named(model, adapter_name)
    sites, trained = [], []
    for path, module in tuner_of(model).model.named_modules():
        if isinstance(module, VLPetLayer) and adapter_name in module.vlpet_adapter:
            site: Any = module.vlpet_adapter[adapter_name]
            gate = sum(p.numel() for name, p in site.named_parameters() if name.startswith("gate"))
            sites.append(
                Adapted(
                    path,
                    module.kind,
                    count(site),
                    gate,
                    gate_rank=None if site.gate_down is None else site.gate_down.out_features,
                    **{name: getattr(site, name) for name in _SHOWN},
                )
            )
        elif isinstance(module, AuxiliaryTrainingWrapper) and adapter_name in module.modules_to_save:
            kind = "trained visual embedding" if path.endswith("visual_embedding") else "trained module"
            kind = "trained norm" if "norm" in path.rpartition(".")[2].lower() else kind
            trained.append(Adapted(path, kind, count(module.modules_to_save[adapter_name])))
    return sites + trained


_SHOWN = ("granularity", "rank", "heads", "design", "modification", "scale")


def parameter_counts(model: nn.Module, adapter_name: str | None = None) -> dict[str, int | float]:
    """Parameters by part, as the paper counts them: name -> number, ending with trainable, total and percent.

    ``total`` is the frozen model plus the new modules; the copies that PEFT keeps of modules trained whole (the norms,
    the visual embedding) are the model's own, so they count once.
    """
    places = adapted(model, adapter_name)

    def total(side: str | tuple[str, ...], what: Callable[[Adapted], int]) -> int:
        return sum(what(place) for place in places if place.kind.startswith(side))

    encoder = ("encoder", "language model")  # which takes the encoder's part in a decoder-only model
    counts: dict[str, Any] = {
        "encoder_delta": total(encoder, lambda place: place.parameters - place.gate_parameters),
        "encoder_gate": total(encoder, lambda place: place.gate_parameters),
        "decoder_value": total("decoder", lambda place: place.parameters),
        "norms": total("trained norm", lambda place: place.parameters),
        "visual": total("trained visual", lambda place: place.parameters),
        "other": total("trained module", lambda place: place.parameters),
    }
    new = counts["encoder_delta"] + counts["encoder_gate"] + counts["decoder_value"]
    counts["trainable"] = sum(counts.values())
    counts["total"] = own_counter(tuner_of(model).model)(tuner_of(model).model) + new
    counts["percent"] = 100 * counts["trainable"] / counts["total"]
    return counts


def describe(model: nn.Module, adapter_name: str | None = None) -> str:
    """What VL-PET adapted in ``model`` (a PEFT model or its tuner), in words; :func:`adapted` gives it as a list."""
    adapter_name = adapter_named(model, adapter_name)
    places, counts = adapted(model, adapter_name), parameter_counts(model, adapter_name)
    lines = [f"VL-PET adapter {adapter_name!r}:"]
    groups = Counter((place.kind, *(getattr(place, name) for name in _SHOWN), place.gate_rank) for place in places)
    sizes: Counter[str] = Counter()
    for place in places:
        sizes[place.kind] += place.parameters
    for (kind, granularity, rank, heads, design, modification, scale, gate_rank), number in groups.items():
        if granularity is None:
            lines.append(f"  {number} x {kind}: {sizes[kind]:,} parameters")
            continue
        words = [f"granularity {granularity}" if granularity != "none" else "no gate", f"rank {rank}"]
        words += [f"{heads} heads ({design})"] if heads > 1 else []
        words += [f"gate rank {gate_rank}"] if gate_rank else []
        words += [f"scale {scale:g}"] if scale != 1 else []
        words += [f"{modification} weights"] if modification != "linear" else []
        lines.append(f"  {number} x {kind}: {', '.join(words)}: {sizes[kind]:,} parameters")
    lines += _together(tuner_of(model))
    lines.append(last_line(counts))
    return "\n".join(lines)


def _together(tuner: Any) -> list[str]:
    """Lines that say what runs in one operation, and why the rest does not."""
    reasons: Counter[str | None] = Counter(tuner.unfused().values())
    lines, whole = [], reasons.pop(None, 0)
    if whole:
        lines.append(f"  fused: {whole} layers, whose dropout, residual connection and norm are in the operation")
    lines += [f"  not fused: {number} layers: {reason}" for reason, number in reasons.items()]
    for group in tuner.value_groups():
        reason = group.obstacle()
        lines.append(
            f"  values of {len(group.sites)} decoder layers: "
            + ("in one operation" if reason is None else f"one by one: {reason}")
        )
    return lines
