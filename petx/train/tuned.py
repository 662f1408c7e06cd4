"""A tuned model on disk: its trained tensors, and a manifest that names its host and what it was made with."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from petx import baselines, hosts
from petx.errors import UserError
from petx.files import written_whole
from petx.train import checkpoints, recipes
from petx.train.recipe import Recipe
from petx.train.settings import Common, checked
from petx.version import __version__

MANIFEST = "petx.json"


@dataclasses.dataclass
class Tuned:
    model: nn.Module
    tokenizer: Any
    settings: Common
    manifest: dict[str, Any]
    recipe: Recipe
    host: type[hosts.Host]


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
        else:
            checkpoints.save_trainable(model, target)
        (target / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def load(folder: str | Path) -> Tuned:
    """The model in ``folder``, built again on its host; :class:`UserError` if either is not there."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no folder written by petx train: cannot read {MANIFEST} ({error})") from error
    host_folder = manifest["host"] if manifest.get("on_hub") else (folder / manifest["host"]).resolve()
    if not manifest.get("on_hub") and not (host_folder / "config.json").is_file():
        raise UserError(f"{folder}: its host is not in {host_folder}; keep the folders of a run together")
    recipe = recipes.find(manifest.get("recipe", "vlpet"))
    settings, host = checked(recipe.settings, manifest["settings"]), hosts.of_checkpoint(host_folder, recipe.name)
    model = host.load(host_folder, settings).requires_grad_(False)
    if (folder / "adapter_config.json").is_file():
        model = PeftModel.from_pretrained(model, folder)
    else:
        model = baselines.find(manifest["arm"], recipe.name).build(host, model, settings)
        checkpoints.load_trainable(model, folder)
    return Tuned(model.eval(), host.tokenizers(host_folder), settings, manifest, recipe, host)
