"""What a study's YAML file says: cells, each with its settings, all checked before anything runs."""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from petx import hosts
from petx.errors import UserError
from petx.train import METHODS, recipes
from petx.train.settings import MOST_SEED, Common, assigned, checked, laid_over, presets, read_preset, read_yaml
from petx.train.unread import reasons

FOLDER = Path(__file__).parents[1] / "recipes" / "studies"
KEYS = {  # of the file -> its type; those of _OPTIONAL may be left out
    "description": str,
    "method": str,
    "preset": str,
    "metric": str,
    "seeds": list,
    "settings": dict,
    "axes": dict,
    "cells": dict,
}
_OPTIONAL = ("settings", "axes", "cells")
OWN = ("seed", "seeds", "output_dir", "resume")  # settings that a study itself gives to its runs


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination of settings.

    Attributes:
        name: in tables, and its folder.
        place: its values along the study's axes, ``{"level": "large"}``, or ``{"cell": name}``.
        changes: settings over the preset, the study's own and ``--set`` included.
        settings: all of them, checked; without a seed.
    """

    name: str
    place: dict[str, Any]
    changes: dict[str, Any]
    settings: Common

    @property
    def folder(self) -> str:
        """Its name as a folder's."""
        return re.sub(r"[^\w.,=+-]+|^\.+", "_", self.name)


@dataclasses.dataclass(frozen=True)
class Study:
    """A study as its file describes it; ``axes`` are the names of what the cells differ in."""

    name: str
    description: str
    method: str
    preset: str
    metric: str
    seeds: list[int]
    axes: list[str]
    cells: list[Cell]


def names() -> list[str]:
    """The studies that petx brings."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def description(name: str) -> str:
    """What the study ``name`` says of itself, for listings."""
    return str(read_yaml(FOLDER / f"{name}.yaml").get("description", ""))


def read(name: str, *, seeds: list[int] | None = None, assignments: list[str] | None = None) -> Study:
    """The study ``name``, one of petx's or a YAML file, by ``seeds`` in place of its own.

    Args:
        assignments: ``KEY=VALUE`` for settings of every cell, over the study's own.

    Raises UserError that names the file, the key or the cell, what came and what was wanted.
    """
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else FOLDER / f"{name}.yaml"
    if path.parent == FOLDER and not path.is_file():
        raise UserError(f"unknown study {name!r}; there are: {', '.join(names())}, or a file that ends in .yaml")
    values = read_yaml(path)
    _check_keys(path, values)
    kind = recipes.find(values["method"]).settings
    if values["preset"] not in presets(kind):
        known = ", ".join(presets(kind))
        raise UserError(f"{path}: unknown preset {values['preset']!r} of {values['method']}; there are: {known}")
    seeds = _seeds(values["seeds"] if seeds is None else seeds, f"{path}: seeds" if seeds is None else "--seeds")
    axes, placed = _placed(path, values)
    cells = []
    for cell_name, place, changes in placed:
        changes = laid_over(values.get("settings", {}), changes)
        for assignment in assignments or []:
            changes = laid_over(changes, assigned(kind, read_preset(kind, values["preset"]) | changes, assignment))
        for own in OWN:
            if own in changes:
                raise UserError(f"{path}: {own} is not a setting of a cell; a study gives seeds and folders itself")
        cells.append(Cell(cell_name, place, changes, _settings(path, values, cell_name, changes)))
    cells = _without_unread(path, values, cells)
    for one, other in itertools.combinations(cells, 2):
        if one.folder == other.folder:
            raise UserError(f"{path}: the cells {one.name} and {other.name} would share the folder {one.folder}")
        if one.settings == other.settings:
            alike = "have the same settings, but for what has no effect in them"
            raise UserError(f"{path}: the cells {one.name} and {other.name} {alike}")
    plain = {key: values[key] for key in ("description", "method", "preset", "metric")}
    return Study(path.stem, **plain, seeds=seeds, axes=axes, cells=cells)


def _settings(path: Path, values: dict[str, Any], cell: str, changes: dict[str, Any]) -> Common:
    kind = recipes.find(values["method"]).settings
    try:
        return checked(kind, laid_over(read_preset(kind, values["preset"]), changes))
    except UserError as error:
        raise UserError(f"{path}: cell {cell}: {error}") from None


def _without_unread(path: Path, values: dict[str, Any], cells: list[Cell]) -> list[Cell]:
    """``cells`` without what has no effect in them, as a setting of all for an arm of some; :class:`UserError` for one
    that has none in any."""
    unread = [reasons_of(cell.settings, cell.changes) for cell in cells]
    for name in dict.fromkeys(name for cell in cells for name in cell.changes):
        told = [found.get(name) for cell, found in zip(cells, unread, strict=True) if name in cell.changes]
        if all(told):
            raise UserError(f"{path}: {told[0]}")
    made = []
    for cell, found in zip(cells, unread, strict=True):
        changes = {name: value for name, value in cell.changes.items() if name not in found}
        settings = _settings(path, values, cell.name, changes) if found else cell.settings
        made.append(dataclasses.replace(cell, changes=changes, settings=settings))
    return made


def reasons_of(settings: Common, names: Iterable[str]) -> dict[str, str]:
    """``{name: words}`` of those of ``names`` that have no effect in a cell; a given host is not looked at."""
    host = hosts.find(recipes.find(settings.recipe).small_host) if settings.host is None else None
    return reasons(settings, names, arms=settings.all_arms, host=host)


def _check_keys(path: Path, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if key not in KEYS:
            raise UserError(f"{path}: unknown key {key!r}; there are: {', '.join(KEYS)}")
        if not isinstance(value, KEYS[key]):
            raise UserError(f"{path}: {key} must be a {KEYS[key].__name__}, got {value!r}")
    for key in KEYS:
        if key not in values and key not in _OPTIONAL:
            raise UserError(f"{path}: {key} is missing")
    if ("axes" in values) == ("cells" in values):
        raise UserError(f"{path}: one of axes and cells must be given, got {'both' if 'axes' in values else 'none'}")
    if values["method"] not in METHODS:
        raise UserError(f"{path}: method must be one of {', '.join(METHODS)}; got {values['method']!r}")


def _seeds(seeds: list[Any], where: str) -> list[int]:
    good = all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed <= MOST_SEED for seed in seeds)
    if not seeds or not good or len(set(seeds)) < len(seeds):
        raise UserError(f"{where} must be different integers from 0 to {MOST_SEED}, at least one; got {seeds!r}")
    return list(seeds)


def _placed(path: Path, values: dict[str, Any]) -> tuple[list[str], list[tuple[str, dict[str, Any], dict[str, Any]]]]:
    """Names of the axes, and of each cell its name, its place along them and the settings that differ."""
    if "cells" in values:
        for name, changes in values["cells"].items():
            if not isinstance(name, str) or not isinstance(changes, dict):
                raise UserError(f"{path}: cells must be {{name: {{setting: value}}}}, got {{{name!r}: {changes!r}}}")
            if not name.strip():
                raise UserError(f"{path}: a cell's name must not be empty, got {name!r}")
        if not values["cells"]:
            raise UserError(f"{path}: cells must name at least one, got none")
        return ["cell"], [(name, {"cell": name}, changes) for name, changes in values["cells"].items()]
    if not values["axes"]:
        raise UserError(f"{path}: axes must name at least one setting, got none")
    for name, along in values["axes"].items():
        if not isinstance(name, str):
            raise UserError(f"{path}: axes must be {{setting: [values]}}, got the name {name!r}")
        if not isinstance(along, list) or not along:
            raise UserError(f"{path}: axes.{name} must be a list of at least one value, got {along!r}")
        if len({json.dumps(value, default=repr) for value in along}) < len(along):
            raise UserError(f"{path}: axes.{name} has a value twice: {along!r}")
    placed = []
    for combination in itertools.product(*values["axes"].values()):
        place = dict(zip(values["axes"], combination, strict=True))
        placed.append((",".join(f"{name}={written(value)}" for name, value in place.items()), place, dict(place)))
    return list(values["axes"]), placed


def written(value: Any) -> str:
    """A setting's value in a name or a table."""
    if isinstance(value, list):
        return "+".join(map(str, value)) or "none"
    return "off" if value is False else "on" if value is True else str(value)
