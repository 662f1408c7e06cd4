"""The floors of CONTRIBUTING.md in Python: what a module up to the tuners may import of petx."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Room -> what its modules may import of petx beside themselves.
MAY = {
    "_checks": set(),
    "ops": {"certify"},
    "reference": set(),
    "functional": {"_checks", "ops", "reference"},
    "nn": {"_checks", "functional"},
    "tuners": {"_memory", "errors", "functional", "nn", "version"},
    "losses": {"_checks", "models"},
    "models": {"_checks", "errors"},
}


def imported(path):
    """The rooms of petx that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"petx.{alias.name}" for alias in node.names] if node.module == "petx" else [node.module]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("petx."))


@pytest.mark.parametrize("room", MAY)
def test_a_room_imports_what_lies_below_it(room):
    place = ROOT / "petx" / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    assert files
    wrong = {str(path): extra for path in files if (extra := set(imported(path)) - MAY[room] - {room})}
    assert not wrong


def imported_first(path, modules):
    """The modules of petx that a file imports when it is imported itself: not in functions, not for types alone."""
    waiting = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in names if {name, node.module} & modules)
        elif not isinstance(node, ast.FunctionDef) and not (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            waiting.extend(ast.iter_child_nodes(node))


def test_no_modules_import_each_other():
    """A module that needs itself, through others, works or not by which of them was imported first."""
    files = {}
    for path in sorted((ROOT / "petx").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    TopologicalSorter({name: {*imported_first(path, set(files))} - {name} for name, path in files.items()}).prepare()
