"""The language model inside a vision-language model."""

from typing import Any

from petx.tuners._common.paths import plain

__all__ = ["language_model"]


def language_model(model: Any) -> str | None:
    """Path of the language model inside ``model``, as transformers' ``get_decoder()`` gives it, or None."""
    found = model.get_decoder() if hasattr(model, "get_decoder") else None
    return next((plain(path) for path, module in model.named_modules() if path and module is found), None)
