"""Writing a published VL-PET checkpoint as ``petx train`` writes a tuned model: a host, and an adapter beside it."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers.utils import logging

from petx import hosts
from petx._quiet import quiet_transformers
from petx.baselines.vlpet import vlpet_config
from petx.errors import UserError
from petx.files import written_whole
from petx.models import VLBartConfig, VLBartForConditionalGeneration
from petx.train import tuned
from petx.train.vlpet import arguments
from petx.tuners.vlpet.released import COPIES, SHARED, Released, read_released

WIDTHS = {2048: "paper-bart-image", 512: "paper-bart-video"}  # of the features -> preset


def import_vlpet(file: Path, host: str, output: Path, data_dir: str) -> list[str]:
    """Write the checkpoint in ``file``, a state_dict of the released code, to ``output``; lines that say what is where.

    Args:
        host: the pretrained BART, folder or hub name: sizes and tokenizer are read from it, weights from ``file``.
        data_dir: what the adapter's manifest names as the data's folder.

    Raises UserError naming a tensor that is missing, of no use, or of another shape, before anything is written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} is there already; name a new folder")
    found = read_released(_state(file), str(file))
    settings = _settings(file, found, host, data_dir)
    kind = hosts.of_checkpoint(host, "vlpet")
    if kind.words != "BART":
        raise UserError(f"--host {host} is a {kind.words}; the published checkpoints are of BART")
    tokenizer = kind.pretrained_tokenizers(settings)
    if len(tokenizer) != len(found.host[SHARED]):
        raise UserError(
            f"{file}: {SHARED} has {len(found.host[SHARED]):,} rows, and the tokenizer of {host} with VL-PET's 200 "
            f"tokens has {len(tokenizer):,}"
        )
    _check(file, found, settings)
    logging.disable_progress_bar()
    with written_whole(output) as target:
        model: Any = VLBartForConditionalGeneration(_config(found, settings))
        model.load_state_dict(found.host, strict=False)  # what is left out is tied to the embedding
        model.save_pretrained(target / "host")
        tokenizer.save_pretrained(target / "host")
        adapted = get_peft_model(model, vlpet_config(settings, model.config.model_type))
        with torch.no_grad():
            for name, parameter in _adapters(adapted).items():
                parameter.copy_(found.adapter[name])
        scores: dict[str, Any] = {"dev": {}, "test": {}}
        more: dict[str, Any] = dict(arm="vlpet", seed=settings.seed, settings=settings, scores=scores)
        tuned.save(adapted, target / "tuned", target / "host", **more)
    return lines(found)


def lines(found: Released) -> list[str]:
    """What was mapped on what, a line for each kind of tensor, numbers as ``*``."""
    kinds = Counter((_kind(old), _kind(new)) for old, new in found.names.items())
    same = sum(count for (old, new), count in kinds.items() if old == new)
    told = [f"{old} -> {new} ({count})" for (old, new), count in kinds.items() if old != new]
    return [*told, f"{same} tensors under their own names"]


def _kind(name: str) -> str:
    return re.sub(r"(?:(?<=layers)|(?<=ad_up))\.\d+|(?<=ad_down)\.\d+|(?<=\.adapters)\.\w+", ".*", name)


def _state(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"no such file: {file}")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what pickle, zip and its own reader raise
        # Not in torch's words, which advise to read it with weights_only=False: that runs what the file says.
        raise UserError(f"{file} is damaged, no file of torch.save, or holds more than tensors") from error


def _settings(file: Path, found: Released, host: str, data_dir: str) -> Any:
    """The paper's preset with the checkpoint's sizes."""
    feature = found.host.get("visual_embedding.feature.weight")
    if feature is None or feature.dim() != 2:
        raise UserError(f"{file}: model.encoder.visual_embedding.feat_embedding.0.weight is missing, or no matrix")
    preset = WIDTHS.get(feature.shape[1], WIDTHS[2048])
    given = {key: found.options[key] for key in ("design", "rank", "heads", "gate_rank", "decoder_rank")}
    given |= dict(level=found.options["granularity"], feature_width=feature.shape[1], arms=["vlpet"])
    given |= dict(host=host, data_dir=data_dir, output_dir="imported")
    return arguments.checked(arguments.read_preset(preset) | given)


def _config(found: Released, settings: Any) -> Any:
    images = found.host.get("visual_embedding.image_order.weight")
    more: dict[str, Any] = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), settings.dropout)
    more |= dict(vocab_size=len(found.host[SHARED]), visual_width=settings.feature_width)
    more |= dict(max_images=2 if images is None else len(images))
    with quiet_transformers():  # it says that the configuration is a BART's
        return VLBartConfig.from_pretrained(settings.host, **more)


def _adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' tensors of a PEFT model, named as :attr:`Released.adapter`."""
    named = {name: p for name, p in model.named_parameters() if ".vlpet_adapter.default." in name}
    plain = {name.removeprefix("base_model.model."): p for name, p in named.items()}
    return {name.replace(".vlpet_adapter.default.", ".vlpet_adapter."): p for name, p in plain.items()}


def _check(file: Path, found: Released, settings: Any) -> None:
    """Hold every tensor to the shape it has here, before memory is taken for any."""
    config = _config(found, settings)
    with torch.device("meta"):
        skeleton: Any = VLBartForConditionalGeneration(config)
        host = {name: t for name, t in skeleton.state_dict().items() if name not in COPIES}
        adapted = get_peft_model(skeleton, vlpet_config(settings, config.model_type))
    released = {new: old for old, new in reversed(found.names.items())}
    for given, wanted in ((found.host, host), (found.adapter, _adapters(adapted))):
        for name in wanted:
            if name not in given:
                raise UserError(f"{file}: nothing becomes {name}, which is {list(wanted[name].shape)} here")
        for name, tensor in given.items():
            if name not in wanted:
                raise UserError(f"{file}: {released[name]} is of no use here")
            if tensor.shape != wanted[name].shape:
                shapes = f"{list(tensor.shape)}, wanted {list(wanted[name].shape)}"
                raise UserError(f"{file}: {released[name]} becomes {name} of {shapes}")
