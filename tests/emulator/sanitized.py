"""The emulated kernels and their launchers under AddressSanitizer and UndefinedBehaviorSanitizer.

    python -m tests.emulator.sanitized

builds them so, then runs a few cases in a process that has the sanitizers loaded. What the kernels do to memory, the
emulator checks itself; the sanitizers see the rest: launchers, tables of jobs, arrays in registers, arithmetic.
"""

import os
import subprocess
import sys

from tests.emulator import FLAGS, compiler, kernels

# Stacks of fibers are no stacks that the sanitizer knows, so it leaves the stack's variables alone.
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "--param", "asan-stack=0"]
WANTED = [*(flag for flag in FLAGS if not flag.startswith("-O")), "-O1", *SANITIZE]


def environment():
    """What a process needs to load a library that is built with :data:`SANITIZE`."""
    runtimes = [
        subprocess.run([*compiler(), f"-print-file-name=lib{name}.so"], capture_output=True, text=True).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    if not all(os.path.isabs(path) for path in runtimes):
        return None
    # Python itself keeps memory to its end.
    return os.environ | {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def run(library):
    """In the process that has the sanitizers: the few cases that matter of every operation."""
    import torch

    from tests.cases import few
    from tests.checks import outputs_and_grads, wrong
    from tests.emulator import Emulator
    from tests.emulator.operations import in_place_of_cpu_kernels

    emulator = Emulator(library)
    emulator.order = "random-1"
    with in_place_of_cpu_kernels(emulator):
        for number, case in enumerate(few()):
            dtype = (torch.bfloat16, torch.float32)[number % 2]
            tensors = case.inputs(dtype)
            said = wrong(outputs_and_grads(case.run, tensors), case, tensors)
            assert said is None, f"{case}, {dtype}: {said}"
            print(case, dtype, flush=True)


def main():
    command = [sys.executable, "-m", "tests.emulator.sanitized", kernels(WANTED)]
    return subprocess.run(command, env=environment()).returncode


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]) if len(sys.argv) > 1 else main())
