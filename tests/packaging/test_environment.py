"""docs/environment.md lists every environment variable that petx reads, and no other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
LISTED = set(re.findall(r"^\| `(PETX_\w+)` \|", PAGE, re.MULTILINE))
SUFFIXES = (".py", ".h", ".cpp", ".cu", ".cuh", ".inl")


def read_in(*folders):
    """Variables that a source names as a whole string, as in ``getenv("PETX_BLAS")``."""
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    return {name for path in sources for name in re.findall(r"[\"'](PETX_[A-Z0-9_]+)[\"']", path.read_text("utf-8"))}


def test_page_lists_what_the_code_reads():
    assert read_in("petx", "csrc", "buildtools") == LISTED


@pytest.mark.parametrize("path", ["tools/on_gpu.sh", ".ci/run", "Makefile"])
def test_scripts_set_what_the_page_lists(path):
    named = set(re.findall(r"\bPETX_[A-Z_]+", (ROOT / path).read_text(encoding="utf-8")))
    assert named and named <= LISTED


def test_documents_name_what_the_page_lists():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "petx").rglob("*.py")]:
        named = set(re.findall(r"\bPETX_[A-Z_]+", path.read_text(encoding="utf-8")))
        assert named <= LISTED, path.name
