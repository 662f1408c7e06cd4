"""What petx adds to the model card (README.md) that PEFT writes beside a saved adapter: method, counts, settings."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from peft import PeftConfig

from petx.version import __version__

__all__ = ["AdapterConfig"]

BEGIN, END = "<!-- petx -->", "<!-- /petx -->"
# Lines of describe() on how the model runs here and now, which is not the adapter's.
RUNNING = re.compile(r"^  (not )?fused: .*\n", re.MULTILINE)
FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)  # the card's data for the hub
OWN = ("auto_mapping", "base_model_name_or_path", "peft_type", "inference_mode", "revision", "host", "peft_version")


class AdapterConfig(PeftConfig):
    """A configuration of petx's: saved by a model that has its adapter, it tells the model card what that is."""

    told: str | None = None  # the tuner's describe(), once an adapter of it is in a model; not a field, and not saved

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As PEFT's; and the section of petx in ``save_directory``'s README.md if an adapter was made of this."""
        super().save_pretrained(save_directory, **kwargs)
        if self.told is not None:
            write_card(Path(save_directory), section(self))


def section(config: Any) -> str:
    """Method, what was adapted with its counts, and the settings of ``config``, in Markdown."""
    fields = [field for field in dataclasses.fields(config) if field.name not in OWN]
    settings = [(field.name, getattr(config, field.name)) for field in fields]
    rows = [f"| `{name}` | `{_cell(value)}` |" for name, value in settings if value is not None]
    return "\n".join(
        [
            BEGIN,
            f"# {config.told.partition(' adapter')[0]} adapter",
            "",
            f"Made by petx {__version__}; `petx.tuners.load_adapter(model, folder)` puts it on its model.",
            "",
            "```text",
            RUNNING.sub("", config.told),
            "```",
            "",
            "| setting | value |",
            "| --- | --- |",
            *rows,
            END,
        ]
    )


def _cell(value: Any) -> str:
    return repr(value).replace("|", "\\|")  # which would end a table's cell


def write_card(folder: Path, text: str) -> None:
    """Put ``text`` behind the front matter of the card in ``folder``, in place of an earlier one of petx."""
    file = folder / "README.md"
    card = file.read_text(encoding="utf-8") if file.is_file() else ""
    card = re.sub(rf"{BEGIN}.*?{END}\n*", "", card, flags=re.DOTALL)
    front = found[0] if (found := FRONT.match(card)) else ""
    file.write_text(f"{front}{text}\n\n{card[len(front) :].lstrip()}", encoding="utf-8")
