"""What ``petx.nn`` and its like offer is written down, complete, documented, and seen by an editor or type checker."""

import ast
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import petx

ROOT = Path(__file__).resolve().parents[2]
FACES = ("functional", "losses", "models", "nn", "reference", "tuners")


def face(name):
    return ast.parse((ROOT / "petx" / name / "__init__.py").read_text(encoding="utf-8"))


def public_names(package):
    """name -> module, of what the modules of a package offer in their ``__all__``."""
    names = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name in getattr(module, "__all__", ()):
            assert name not in names, f"{name} is public in {names[name]} and in {module.__name__}"
            names[name] = module.__name__
    return names


@pytest.mark.parametrize("name", FACES)
class TestPackage:
    def test_exports_are_complete_and_sorted(self, name):
        package = importlib.import_module(f"petx.{name}")
        assert package.__all__ == sorted(public_names(package))

    def test_exports_are_static(self, name):
        """Imports that a tool can follow without running anything, and a list of strings."""
        imported = {
            alias.asname or alias.name
            for node in face(name).body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        (listed,) = (
            node.value
            for node in face(name).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        )
        assert set(ast.literal_eval(listed)) - imported == set()

    def test_every_public_name_has_docstring_and_signature(self, name):
        package = importlib.import_module(f"petx.{name}")
        missing = []
        for public in package.__all__:
            thing = getattr(package, public)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                documented = {public: thing}
                if "forward" in vars(thing):
                    documented[f"{public}.forward"] = thing.forward
                missing += [text for text, part in documented.items() if not (part.__doc__ or "").strip()]
                inspect.signature(thing)
        assert missing == []

    def test_every_public_name_is_annotated(self, name):
        package = importlib.import_module(f"petx.{name}")
        things = {public: getattr(package, public) for public in package.__all__}
        assert [
            f"{public}{part}"
            for public, thing in things.items()
            if inspect.isclass(thing) or inspect.isfunction(thing)
            for part, function in functions_of(thing).items()
            if not is_annotated(function)
        ] == []

    def test_every_forward_says_its_shapes(self, name):
        package = importlib.import_module(f"petx.{name}")
        classes = [getattr(package, public) for public in package.__all__ if inspect.isclass(getattr(package, public))]
        forwards = {one.__name__: vars(one)["forward"] for one in classes if "forward" in vars(one)}
        assert [public for public, forward in forwards.items() if not re.search(r"\[[^]]*\]``", forward.__doc__)] == []

    def test_every_public_name_says_its_errors(self, name):
        """A reference checks nothing, and what transformers builds is told by transformers."""
        package = importlib.import_module(f"petx.{name}")
        things = {public: getattr(package, public) for public in package.__all__ if name != "reference"}
        callables = {public: thing for public, thing in things.items() if callable(thing)}
        silent = {public for public, thing in callables.items() if not re.search(r"\b[Rr]aises\b", thing.__doc__)}
        assert silent == SILENT.get(name, set())

    def test_no_public_signature_leaves_a_type_open(self, name):
        """``Any`` satisfies a type checker and tells a reader nothing. transformers leaves the ones in OPEN open."""
        package = importlib.import_module(f"petx.{name}")
        found = {
            f"{public}{part}: {argument}"
            for public in package.__all__
            if inspect.isclass(getattr(package, public)) or inspect.isfunction(getattr(package, public))
            for part, function in functions_of(getattr(package, public)).items()
            for argument in left_open(function)
        }
        assert found == OPEN.get(name, set())


SILENT = {
    "losses": {"LabelBag"},
    "models": {
        *("Blip2Retrieval", "FeatureInstructBlip", "FeatureInstructBlipConfig", "FeatureVision", "InstructBlip"),
        *("Temperature", "VLBartConfig", "VLT5Config", "VisualEmbedding", "feature_config"),
    },
}
OPEN = {
    "models": {
        f"{model}.{argument}"
        for model in ("VLBartForConditionalGeneration", "VLT5ForConditionalGeneration")
        for argument in (
            "forward: encoder_outputs",
            "generate: generation_config",
            "generate: return",
            "encode_joint: encoder",
        )
    }
    | {f"{model}.get_image_features: return" for model in ("FeatureInstructBlip", "InstructBlip")}
}


@pytest.mark.parametrize("name", [*FACES, "certify"])
def test_no_public_name_is_a_module_too(name):
    """Else which of the two ``petx.name.thing`` is hangs on what was imported last."""
    package = importlib.import_module(f"petx.{name}")
    assert set(package.__all__) & {info.name for info in pkgutil.iter_modules(package.__path__)} == set()


@pytest.mark.parametrize("name", [*(name for name in FACES if name != "reference"), "certify", "metrics"])
def test_api_site_has_a_page(name):
    page = (ROOT / "docs" / "api" / f"{name}.md").read_text(encoding="utf-8")
    assert f"::: petx.{name}\n" in page
    assert f"api/{name}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def functions_of(thing):
    """name -> function: a function itself, or what petx defines of a class: its constructor and public methods."""
    if not inspect.isclass(thing):
        return {"": thing}
    found = {}
    for base in reversed(thing.__mro__):
        for name, part in vars(base).items() if base.__module__.startswith("petx.") else ():
            function = getattr(part, "__func__", part.fget if isinstance(part, property) else part)
            if inspect.isfunction(function) and (name == "__init__" or not name.startswith("_")):
                found[f".{name}"] = function
    return found


def left_open(function):
    """Arguments (``*args`` and ``**kwargs`` aside) and "return", if their annotation is no more than ``Any``."""
    signature = inspect.signature(function)
    given = {
        argument: parameter.annotation
        for argument, parameter in signature.parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    named = given | {"return": signature.return_annotation}
    return [argument for argument, annotation in named.items() if annotation in (Any, "Any")]


def is_annotated(function):
    """Whether every argument but ``self`` has an annotation and, but for constructors, the result."""
    signature = inspect.signature(function)
    missing = [name for name, given in signature.parameters.items() if given.annotation is given.empty]
    complete = function.__name__ == "__init__" or signature.return_annotation is not signature.empty
    return complete and set(missing) <= {"self", "cls"}


USER = """\
import torch
from petx.losses import InformationBottleneck, label_bag
from petx.models import aggregate_instructions
from petx.models import VLBartConfig, VLBartForConditionalGeneration, build_instruct_blip
from petx.tuners import PetalConfig, VLPetConfig, load_adapter

term: torch.Tensor = InformationBottleneck(8, 8, 100)(torch.ones(2, 8), torch.ones(2, 8), torch.ones(2, 3).long())
joined: torch.Tensor = aggregate_instructions([torch.ones(1, 2, 3)], scale="sqrt_width")
host = VLBartForConditionalGeneration(VLBartConfig(d_model=64))
config = VLPetConfig(granularity="large", rank=24)
InformationBottleneck(8, 8, 100, wrong=1)  # error: call-arg
label_bag(torch.ones(2, 3), "many")  # error: arg-type
build_instruct_blip(7)  # error: arg-type
VLPetConfig(wrong=1)  # error: call-arg
PetalConfig(rank="8")  # error: arg-type
load_adapter(host)  # error: call-arg
"""


@pytest.mark.nightly  # and in .ci/run; mypy reads transformers and torch from nothing: 45 s of a core
def test_a_type_checker_sees_what_a_user_calls(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(USER)
    wanted = {i: found[1] for i, line in enumerate(USER.splitlines(), 1) if (found := re.search("# error: (.*)", line))}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", str(tmp_path / "cache"), script.name],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    lines = [re.match(r"script\.py:(\d+): error: .*\[([\w-]+)\]$", line) for line in done.stdout.splitlines()]
    assert {int(line[1]): line[2] for line in lines if line} == wanted, done.stdout


def test_the_package_says_that_it_is_typed():
    assert (Path(petx.__file__).parent / "py.typed").is_file()
