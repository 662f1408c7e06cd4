"""Pages at the root and below docs/ say what works: examples run, commands and options exist, links lead somewhere."""

import contextlib
import functools
import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from petx import cli

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path, language):
    return [code for found, code in FENCE.findall(path.read_text(encoding="utf-8")) if found == language]


EXAMPLES = [(path.name, i) for path in DOCUMENTS for i in range(len(blocks(path, "python")))]


def test_readme_has_examples():
    assert len(blocks(ROOT / "README.md", "python")) >= 2


@pytest.mark.slow
@pytest.mark.parametrize(("document", "index"), EXAMPLES)
def test_example_runs(document, index, tmp_path):
    path = next(path for path in DOCUMENTS if path.name == document)
    code = blocks(path, "python")[index]
    named = re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE)
    missing = [package for package in named if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}, not installed")
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:petx", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["train", "train-petal", "test"])
def test_command_is_one_marked_block(name):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(re.findall(rf"^<!-- command: {name} -->\n```bash\n", text, re.MULTILINE)) == 1


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_named_commands_exist(path):
    text = path.read_text(encoding="utf-8")
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    lines = "\n".join([*spans, *blocks(path, "bash")])
    named = set(re.findall(r"^petx ([a-z][\w-]*)", lines, re.MULTILINE))
    assert named <= set(cli.command_names())


@functools.cache
def helped(*words):
    printed = io.StringIO()
    with pytest.raises(SystemExit), contextlib.redirect_stdout(printed):
        cli.main([*words, "--help"])
    return set(re.findall(r"--[a-z][\w-]*", printed.getvalue()))


def known_options(words):
    """The options in ``--help`` of the command that ``words`` begin with; of ``train`` without a method, of both."""
    if words[0] == "train":
        methods = [word for word in words[1:2] if word in ("vlpet", "petal")]
        return set().union(*(helped("train", method) for method in methods or ("vlpet", "petal")))
    return helped(*words[: 2 if words[0] in ("data", "params") else 1])


@pytest.mark.slow  # imports what training needs
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_options_of_commands_exist(path):
    text = path.read_text(encoding="utf-8")
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    lines = "\n".join([*spans, *blocks(path, "bash")]).replace("\\\n", " ")
    wrong = []
    for line in re.findall(r"^(?:[A-Z_]+=\S+ )?petx ([a-z].*)", lines, re.MULTILINE):
        words = line.partition("#")[0].split()
        given = {word.partition("=")[0] for word in words if re.match("--[a-z]", word)}
        given = {"--trainer" if word.startswith("--trainer.") else word for word in given}
        if given:
            wrong += [(line, word) for word in given - known_options(words)]
    assert wrong == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path):
    wrong = []
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf-8")):
        name, _, heading = target.partition("#")
        page = path.parent / name if name else path
        if not page.exists() or (heading and heading not in headings(page)):
            wrong.append(target)
    assert wrong == []


def headings(page):
    """What a link may name behind ``#``, as GitHub and mkdocs make it of a page's headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)}


def test_counted_operators_are_those_of_the_table():
    table = (ROOT / "docs" / "vlpet.md").read_text(encoding="utf-8")
    told = re.findall(r"[\d,]+ \+ \d+", (ROOT / "docs" / "training.md").read_text(encoding="utf-8"))
    counts = [count for count in told if count != "2 + 2"]  # the small BART's layers
    assert counts and [count for count in counts if count not in table] == []
