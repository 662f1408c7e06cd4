"""The files at the root say the same as each other: versions, commands, forms."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import petx

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
FORMS = [path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]


def load(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_pre_commit_runs_the_versions_that_ci_runs():
    wanted = {Requirement(text).name: text for text in EXTRAS["dev"]}
    (repository,) = load(".pre-commit-config.yaml")["repos"]
    pinned = [text for hook in repository["hooks"] for text in hook.get("additional_dependencies", [])]
    assert {text.partition("=")[0] for text in pinned} == {"ruff", "clang-format"}
    assert [text for text in pinned if text != wanted[text.partition("=")[0]]] == []


@pytest.mark.parametrize(
    ("line", "refused"),
    [("x" * 72, False), ("x" * 73, True), ("ä" * 72, False), ("# " + "x" * 80, False), ("", False)],
)
def test_pre_commit_refuses_a_wide_message(line, refused):
    """As pre-commit reads the entry of a pygrep hook: a pattern over the bytes of each line."""
    config = load(".pre-commit-config.yaml")
    assert "commit-msg" in config["default_install_hook_types"]
    (hook,) = (hook for hook in config["repos"][0]["hooks"] if hook["language"] == "pygrep")
    assert hook["stages"] == ["commit-msg"]
    assert bool(re.search(hook["entry"].encode(), f"{line}\n".encode())) == refused


def test_citation_is_of_this_version():
    citation = load("CITATION.cff")
    assert citation["version"] == petx.__version__
    assert {reference["url"][-10:] for reference in citation["references"]} == {"2308.09804", "2312.12458"}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_form_is_complete(path):
    form = load(path)
    assert form["name"] and form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert fields and all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)


def test_workflow_runs_what_ci_runs():
    (job,) = load(".github/workflows/ci.yml")["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_make_targets_are_told():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    assert targets == phony
    for page in ("CONTRIBUTING.md", ".github/PULL_REQUEST_TEMPLATE.md"):
        spans = re.findall(r"`make ([a-z -]+)`", (ROOT / page).read_text(encoding="utf-8"))
        assert spans and {name for span in spans for name in span.split()} <= targets
