"""A tuned model on disk: its trained tensors, and a manifest that names its host and what it was made with."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from petx import baselines, hosts
from petx._checks import is_number
from petx.errors import UserError
from petx.files import damaged_files, read_json, written_whole
from petx.train import checkpoints, heads, recipes
from petx.train.recipe import Recipe
from petx.train.settings import Common, checked
from petx.tuners.loading import load_adapter, methods
from petx.version import __version__

MANIFEST = "petx.json"
FIELDS = {"recipe": str, "arm": str, "seed": int, "host": str, "scores": dict, "settings": dict}


@dataclasses.dataclass
class Tuned:
    model: nn.Module
    tokenizer: Any
    settings: Common
    manifest: dict[str, Any]
    recipe: Recipe
    host: type[hosts.Host]
    host_folder: str | Path  # where the host was found now, or its hub name


def save(
    model: nn.Module,
    folder: str | Path,
    host_folder: str | Path,
    *,
    arm: str,
    seed: int,
    settings: Any,
    scores: dict[str, Any],
) -> None:
    """Write what is trained of ``model`` to ``folder``, as a PEFT adapter if it is one.

    The host stays in ``host_folder``, which the manifest names relative to ``folder``: move the two together.
    """
    near_by = host_folder if isinstance(host_folder, str) else Path(os.path.relpath(host_folder, folder)).as_posix()
    manifest = {
        "petx": __version__,
        "recipe": settings.recipe,
        "arm": arm,
        "seed": seed,
        "host": near_by,
        "scores": scores,
    }
    manifest |= {"on_hub": True} if isinstance(host_folder, str) else {}
    manifest["settings"] = dataclasses.asdict(settings)
    with written_whole(folder) as target:
        if isinstance(model, PeftModel):
            model.save_pretrained(str(target))
            heads.save(model, target)
        else:
            checkpoints.save_trainable(model, target)
        (target / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def load(folder: str | Path) -> Tuned:
    """The model in ``folder``, built again on its host; :class:`UserError` if either is not there."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is no folder written by petx train: {MANIFEST} is not there")
    manifest = read_json(folder / MANIFEST, hint="it is written by petx train beside the adapter")
    manifest.setdefault("recipe", "vlpet")  # as once written
    for name, kind in FIELDS.items():
        if not isinstance(manifest.get(name), kind) or isinstance(manifest[name], bool):
            raise UserError(f"{folder / MANIFEST}: {name} must be {kind.__name__}, got {manifest.get(name)!r}")
    host_folder = manifest["host"] if manifest.get("on_hub") else (folder / manifest["host"]).resolve()
    if not manifest.get("on_hub") and not (host_folder / "config.json").is_file():
        raise UserError(f"{folder}: its host is not in {host_folder}; keep the folders of a run together")
    recipe = recipes.find(manifest["recipe"])
    if manifest["arm"] not in recipe.baselines:
        known = ", ".join(recipe.baselines)
        raise UserError(f"{folder / MANIFEST}: unknown arm {manifest['arm']!r}; there are: {known}")
    for split in ("dev", "test"):
        given = manifest["scores"].get(split, {})
        if not isinstance(given, dict) or not all(map(is_number, given.values())):
            raise UserError(f"{folder / MANIFEST}: scores.{split} must be {{metric: number}}, got {given!r}")
    try:
        settings = checked(recipe.settings, manifest["settings"])
    except UserError as error:
        raise UserError(f"{folder / MANIFEST}: settings: {error}") from error
    host = hosts.of_checkpoint(host_folder, recipe.name)
    model = hosts.load(host, host_folder, settings).requires_grad_(False)
    if (folder / "adapter_config.json").is_file():
        model = adapted(model, folder)
        heads.load(model, folder)
    else:
        model = heads.built(baselines.find(manifest["arm"], recipe.name), host, model, settings)
        checkpoints.load_trainable(model, folder)
    tokenizer = hosts.tokenizers(host, host_folder)
    return Tuned(model.eval(), tokenizer, settings, manifest, recipe, host, host_folder)


def adapted(model: nn.Module, folder: Path) -> nn.Module:
    """The adapter in ``folder`` on ``model``: petx's own with every check of its files, another by PEFT."""
    kind = read_json(folder / "adapter_config.json", "peft_type", hint="it is written beside the adapter's tensors")
    if kind["peft_type"] in methods():
        return load_adapter(model, folder)
    for name, reason in damaged_files(folder).items():
        raise UserError(f"{folder / name} is damaged ({reason})")
    return PeftModel.from_pretrained(model, folder)
