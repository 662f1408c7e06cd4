"""The lanes of the suite, and how several processes of it (pytest-xdist) share what is dear to make.

A test's lane is its folder: ``pytest -m operations``. Beside it ``slow``, which the everyday loop leaves out, stands on
tests and in a module's ``SLOW_FIXTURES``, whose users are slow; ``gpu`` is what needs one.
CONTRIBUTING.md says what each lane takes; ``--cpu`` measures it, in seconds of a core, which do not depend on what
else the machine does.
"""

import contextlib
import gc
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock

HERE = Path(__file__).parent
# The tiny hosts that the everyday loop runs the tuners' tests on, one a method: on others they are slow.
EVERYDAY_HOSTS = {"vl_bart", "instructblip-t5"}
# What runs the CUDA kernels on the CPU compiles all of them first, for a minute of two cores.
EMULATED = {"emulator", "emulated_kernels", "machine", "tiny", "plain_faults"}
MOST_WORKERS = 8  # each loads torch and transformers


def stay_offline():
    """No test asks a hub for a model; transformers would wait for an answer that does not come."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def cores():
    return len(os.sched_getaffinity(0))


def pin_threads():
    """In a worker: a share of the cores, here and in what it starts. Before torch is imported, which asks once."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if workers > 1:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, str(max(1, cores() // workers)))


@contextlib.contextmanager
def collector_resting():
    """While thousands of tests are collected none of them is garbage, and looking at all again and again takes a third
    of the time. Later rounds leave out what is there by then."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def mark(item):
    """The lane's marker, and for tests that share a whole run one worker, so that it is made once."""
    lane = item.path.relative_to(HERE).parts[0]
    item.add_marker(lane)
    parameters = getattr(item, "callspec", _NoParameters).params
    if lane == "tuners" and parameters.get("kind", "vl_bart") not in EVERYDAY_HOSTS:
        item.add_marker("slow")
    if lane == "emulator" and not EMULATED.isdisjoint(item.fixturenames):
        item.add_marker("slow")
    if "cuda" in parameters.values():
        item.add_marker("gpu")
    if item.get_closest_marker("nightly"):
        item.add_marker("slow")
    if not getattr(item.module, "SLOW_FIXTURES", set()).isdisjoint(item.fixturenames):
        item.add_marker("slow")
        item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


class _NoParameters:
    params = {}


def shared_folder(tmp_path_factory, name, make):
    """A folder of this session that ``make(folder)`` filled, once for all workers; whoever comes second waits.

    A folder whose making failed is not kept: the next worker tries, and fails with the same reason.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / name
    with FileLock(root / f"{name}.lock"):
        if not folder.is_dir():
            scratch = root / f"{name}.making"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            make(scratch)
            scratch.rename(folder)
    return folder


def add_options(parser):
    parser.getgroup("lanes").addoption(
        "--cpu",
        nargs="?",
        const=20,
        type=int,
        metavar="N",
        help="show each lane's seconds of a core, and the N tests (20) that take the most",
    )


class CpuSeconds:
    """Seconds of a core, children that ended included, of every test with its fixtures; from all workers together."""

    def __init__(self, shown):
        self.shown, self.last = shown, self.spent()
        self.tests, self.lanes, self.counts = Counter(), Counter(), Counter()

    @staticmethod
    def spent():
        return sum(os.times()[:4])

    def pytest_collection_finish(self):
        self.last = self.spent()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self):
        report = yield
        now = self.spent()
        report.cpu, self.last = now - self.last, now
        return report

    def pytest_runtest_logreport(self, report):
        lane = report.nodeid.split("/")[1]
        self.tests[report.nodeid] += report.cpu
        self.lanes[lane] += report.cpu
        self.counts[lane] += report.when == "call"

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("seconds of a core")
        for lane, seconds in self.lanes.most_common():
            terminalreporter.write_line(f"{seconds:8.1f}  {lane} ({self.counts[lane]} tests)")
        terminalreporter.write_line(f"{self.lanes.total():8.1f}  in all; the longest:")
        for name, seconds in self.tests.most_common(self.shown):
            terminalreporter.write_line(f"{seconds:8.1f}  {name}")
