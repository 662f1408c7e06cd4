"""The pages at the root and below docs/ say what works: Python examples run, commands exist, links lead somewhere."""

import importlib.util
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


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []
