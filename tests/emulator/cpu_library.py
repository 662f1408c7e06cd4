"""The library of a CPU with a mistake in it: built in a copy of the repository, and asked by pytest there."""

import contextlib
import os
import re
import shutil
import subprocess
import sys

from tests.emulator import HERE

ROOT = HERE.parents[1]
WAIT = 1800  # seconds, by the clock, that a build or a check may take
FAILED = re.compile(r"^FAILED \S+?::(.*?)(?: - (.*))?$", re.MULTILINE)


class CpuLibrary:
    """A copy of what git knows or does not ignore, with a whole library. A mistake recompiles what reads its file."""

    def __init__(self, folder):
        self.tree, self.whole = folder / "tree", folder / "whole"
        listed = subprocess.check_output(["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, text=True)
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.tree / name)
        built = self.run("setup.py", "-q", "build_ext", "--inplace")
        assert built.returncode == 0, built.stdout
        shutil.copytree(self.tree / "build", self.whole)

    @contextlib.contextmanager
    def changed(self, mutation):
        """Inside, the library has the mistake; the value is whether it could be built."""
        file = self.tree / "csrc" / mutation.file
        text, before = file.read_text(), file.stat()
        file.write_text(mutation.apply(text))
        try:
            yield self.run("setup.py", "-q", "build_ext", "--inplace").returncode == 0
        finally:
            # The file and all objects are as old as they were, so that ninja has nothing to do again.
            file.write_text(text)
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
            shutil.rmtree(self.tree / "build")
            shutil.copytree(self.whole, self.tree / "build")

    def noticed(self, checks):
        """(test, what it says) of the first test that fails, or None. A check is what pytest is given."""
        for check in checks:
            try:
                done = self.run("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *check)
            except subprocess.TimeoutExpired:
                return "", f"not done after {WAIT} s"
            if done.returncode:
                return said_by(done.stdout, done.returncode)
        return None

    def run(self, *arguments):
        # No pytest's options of the caller's, lines that hold a message, and of petx the copy, whatever is installed.
        named = {"PETX_CUDA": "0", "PYTEST_ADDOPTS": "", "COLUMNS": "300", "PYTHONPATH": str(self.tree)}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.tree,
            env=os.environ | named,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=WAIT,
        )


def said_by(output, status):
    """(test, what it says) of the output of a pytest that did not pass."""
    if found := FAILED.search(output):
        return found[1], found[2] or "its assertion fails"
    return "", f"ends with status {status}: {output.strip().splitlines()[-1]}"
