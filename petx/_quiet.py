"""Warnings of other libraries about one another, which a user of petx can do nothing about."""

import warnings


def ignore_known_warnings() -> None:
    """Ignore what PEFT 0.21 asks transformers 5 by an old name; nothing here depends on it."""
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
