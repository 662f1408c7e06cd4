"""The emulated kernels and their launchers under AddressSanitizer and UndefinedBehaviorSanitizer."""

import subprocess
import sys

import pytest

from petx import ops
from tests.emulator import HERE, kept, kernels
from tests.emulator.sanitized import WANTED, environment

pytestmark = pytest.mark.skipif(environment() is None, reason="the compiler has no libasan and libubsan")


def run(*command):
    done = subprocess.run([sys.executable, *command], env=environment(), capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("number", "says"),
    [(1, "index 4 out of bounds"), (2, "heap-buffer-overflow"), (3, "signed integer overflow")],
)
def test_sanitizers_are_awake(number, says, plain_faults):
    code, text = run("-c", f"import ctypes; ctypes.CDLL({str(plain_faults)!r}).run_plain({number})")
    assert code != 0 and says in text, text


@pytest.fixture(scope="module")
def plain_faults():
    library = kept("faults", [HERE / "faults.cu"], WANTED)
    code, text = run("-c", f"import ctypes; ctypes.CDLL({str(library)!r}).run_plain(0)")
    assert code == 0, text
    return library


@pytest.mark.nightly  # builds every kernel once more, with sanitizers in it
@pytest.mark.skipif(ops._C is None, reason="needs the compiled library's operators")
def test_kernels_are_clean():
    code, text = run("-m", "tests.emulator.sanitized", str(kernels(WANTED)))
    assert code == 0, text
    assert text.count("torch.bfloat16") > 3
