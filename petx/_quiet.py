"""What other libraries say of one another or of what they load, which a user of petx can do nothing about."""

import contextlib
import warnings
from collections.abc import Iterator


def ignore_known_warnings() -> None:
    """Ignore what PEFT 0.21 asks transformers 5 by an old name; nothing here depends on it."""
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Errors alone from transformers inside; warnings, too, after it."""
    from transformers.utils import logging  # here, since what does not load a model starts without it

    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity_warning()
