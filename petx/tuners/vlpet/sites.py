"""Where VL-PET goes in a given model, and what is trained beside it: decided and checked before anything is changed."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import regex
import torch
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from petx.errors import UserError
from petx.nn import GatedAdapter, ValueAdapter
from petx.tuners._common.model import check_host
from petx.tuners._common.paths import base_of, covered, parents, plain, plain_modules
from petx.tuners.vlpet.config import VLPetConfig
from petx.tuners.vlpet.decoder_only import decoder_only_sites, norms_root

__all__ = ["Site", "check_fit", "find_sites", "modules_to_train", "new_adapter"]


SECONDS = 1  # that a pattern of a configuration may take for one path


@dataclass(frozen=True)
class Site:
    """Where one layer goes: path of the linear, what it is, and the paths its taps listen to."""

    path: str
    side: str
    kind: str
    input: str | None
    mask: str | None


def find_sites(model: nn.Module, config: VLPetConfig) -> dict[str, Site]:
    """Path -> :class:`Site` for every module that ``config``'s patterns match, in the model's order.

    Raises UserError if a pattern matches nothing or a tapped module does not exist.
    """
    if config.preset == "decoder" and config.encoder_sites is None:
        config.encoder_sites = decoder_only_sites(model)
    modules = plain_modules(model)
    sites = {}
    for side in ("encoder", "decoder"):
        for entry in config.sites(side):
            pattern, found = regex.compile(entry["output"]), 0
            for path, module in modules.items():
                try:
                    match = pattern.fullmatch(path, timeout=SECONDS)
                except TimeoutError:
                    raise UserError(
                        f"VL-PET: the search for the pattern {entry['output']!r} of {side}_sites in {path} takes more "
                        f"than {SECONDS} s; write it without repetitions inside repetitions"
                    ) from None
                if match is None:
                    continue
                found += 1
                taps = {}
                for tap, needed in (("input", config.reads_input(side)), ("mask", config.reads_mask(side))):
                    taps[tap] = _expanded(match, entry, side, tap)
                    if needed and taps[tap] not in modules:
                        given = f"which is {taps[tap]!r}, not in the model" if taps[tap] else "which is not given"
                        raise UserError(f"VL-PET: the site {path} needs the {side}_sites entry {tap!r}, {given}")
                if path in sites:
                    raise UserError(f"VL-PET: two entries of encoder_sites and decoder_sites match {path}")
                if isinstance(module, AuxiliaryTrainingWrapper) or not hasattr(base_of(module), "out_features"):
                    raise UserError(f"VL-PET: {path} must be a linear layer, got {type(base_of(module)).__name__}")
                name = entry.get("name", "output" if side == "encoder" else "value")
                where = "language model" if config.preset == "decoder" else side
                sites[path] = Site(path, side, f"{where} {name}", **taps)
            if not found:
                linears = [path for path, module in modules.items() if hasattr(base_of(module), "out_features")]
                raise UserError(
                    f"VL-PET: no module of {type(model).__name__} matches the {side} pattern {entry['output']!r} "
                    f"(preset {config.preset!r}); its linear layers are {_kinds(linears)}. Name this model's modules "
                    f"in {side}_sites"
                )
    if not sites:
        raise UserError("VL-PET: nothing to adapt: encoder_sites is empty, and decoder_sites is empty or off too")
    return {path: sites[path] for path in modules if path in sites}


def _expanded(match: Any, entry: dict[str, str], side: str, tap: str) -> str | None:
    """The path that ``entry`` gives for ``tap`` where its pattern matched; None if it gives none."""
    if not entry.get(tap):
        return None
    try:
        return match.expand(entry[tap])
    except (regex.error, IndexError) as error:
        raise UserError(
            f"VL-PET: {tap} {entry[tap]!r} in {side}_sites does not fit the pattern {entry['output']!r}: {error}"
        ) from None


def _kinds(paths: Iterable[str]) -> str:
    """Paths with their numbers as *, each once: what a model has, short enough for a message."""
    return ", ".join(dict.fromkeys(re.sub(r"\b\d+\b", "*", path) for path in paths)) or "none"


def new_adapter(
    config: VLPetConfig, side: str, linear: nn.Module, device: torch.device | str | None = None
) -> GatedAdapter | ValueAdapter:
    """Adapter module for ``linear``, a frozen linear or the layer around it; of its dtype, by default on its device."""
    frozen = base_of(linear)
    weight = frozen.weight
    place: dict[str, Any] = {"device": weight.device if device is None else device}
    if weight.is_floating_point():
        place["dtype"] = weight.dtype
    options = config.adapter_options(side) | place
    if side == "encoder":
        return GatedAdapter(frozen.out_features, **options)
    return ValueAdapter(frozen.in_features, frozen.out_features, **options)


def modules_to_train(model: nn.Module, config: VLPetConfig) -> list[str]:
    """The user's ``modules_to_save`` and the paths of the norms and the visual embedding that ``config`` trains."""
    chosen = list(config.modules_to_save or ())
    wanted = [("encoder", config.train_encoder_norms), ("decoder", config.train_decoder_norms)]
    for side, train in wanted:
        if train:
            chosen += [path for path in _norms(model, side, config.preset == "decoder") if not covered(path, chosen)]
    if config.train_visual_embedding:
        paths = [path for path in plain_modules(model) if path.rpartition(".")[2] == "visual_embedding"]
        chosen += [path for path in paths if not covered(path, chosen)]
    return chosen


def _norms(model: nn.Module, side: str, decoder_only: bool) -> list[str]:
    """Paths of the normalisation layers in the model's encoder or decoder; a decoder-only model's are its encoder's."""
    stack = norms_root(model, side, decoder_only)
    root = next((path for path, module in plain_modules(model).items() if module is stack), None)
    if stack is None or not root:
        raise UserError(
            f"VL-PET: train_{side}_norms=True needs a model with get_{side}(), which {type(model).__name__} lacks; set "
            "it to False and name the norms in modules_to_save"
        )
    found = []
    for path, module in ((plain(path), module) for path, module in stack.named_modules(prefix=root)):
        if isinstance(module, AuxiliaryTrainingWrapper):
            module = module.original_module
        elif ".original_module" in path or ".modules_to_save." in path or ".vlpet_adapter." in path:
            continue
        if re.search("LayerNorm|RMSNorm", type(module).__name__) and "visual_embedding" not in path.split("."):
            found.append(path)
    return found


def check_fit(model: nn.Module, config: VLPetConfig, sites: dict[str, Site]) -> dict[str, Any]:
    """Facts about the model that an adapter's tensors depend on, after the checks that need the model.

    Raises UserError if the adapters cannot be built, a module of ``modules_to_save`` is adapted too, or ``config``
    was made for another model.
    """
    saved = config.modules_to_save or ()
    modules = plain_modules(model)
    for site in sites.values():
        try:
            new_adapter(config, site.side, modules[site.path], device="meta")
        except ValueError as error:
            raise UserError(f"VL-PET at {site.path}: {error}") from None
        for what, reads in (("input", config.reads_input(site.side)), ("mask", config.reads_mask(site.side))):
            other = getattr(modules[site.path], "tap_paths", {}).get(what, getattr(site, what))
            if reads and other != getattr(site, what):
                raise UserError(f"VL-PET: another adapter at {site.path} has {other} for its {what}; give the same one")
        for path in (site.path, site.input, site.mask):
            within = parents(path or "")
            if any(covered(part, saved) for part in (within + [path] if path == site.path else within)):
                raise UserError(
                    f"VL-PET: {path} belongs to a site and to modules_to_save; what is trained whole cannot be adapted"
                )
    return check_host("VL-PET", _host(model, sites, modules), config)


def _host(model: nn.Module, sites: dict[str, Site], modules: dict[str, nn.Module]) -> dict[str, Any]:
    """What an adapter's tensors depend on in its model."""
    widths = {
        side: sorted({base_of(modules[site.path]).out_features for site in sites.values() if site.side == side})
        for side in ("encoder", "decoder")
    }
    visual = [module for path, module in modules.items() if path.rpartition(".")[2] == "visual_embedding"]
    visual = [getattr(module, "original_module", module) for module in visual]
    return {
        "model_type": getattr(getattr(model, "config", None), "model_type", None),
        "sites": {side: sum(site.side == side for site in sites.values()) for side in ("encoder", "decoder")},
        "widths": widths,
        "visual_embedding": sum(parameter.numel() for module in visual for parameter in module.parameters()),
    }
