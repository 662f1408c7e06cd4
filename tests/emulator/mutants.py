"""Puts one mistake at a time into the kernels and asks whether a test notices.

    python -m tests.emulator.mutants [--only MODULE] [--report FILE]
    python -m tests.emulator.mutants --join FILES --report docs/mutants.md
    python -m tests.emulator.mutants --behind

The mutants are those of tests/emulator/mutations. A survivor is a missing test or dead code (exit code 1).
"""

import argparse
import functools
import importlib
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.emulator import CSRC, HERE, Emulator, KernelFault, compile_unit, link, object_name
from tests.emulator import mutants_page as page
from tests.emulator.cpu_library import CpuLibrary
from tests.emulator.mutations import SPARED, modules, mutations, of_cpu, operations, source
from tests.emulator.operations import in_place_of_cpu_kernels
from tests.emulator.ptx import PtxEmulator, why_absent
from tests.emulator.ptx.operands import Untranslatable

PAGE = HERE.parents[1] / "docs" / "mutants.md"
SECONDS = 120  # of a processor that the checks of one mutant may take, most of them under two
WAIT = 4 * SECONDS  # by the clock
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-w"]
INCLUDE = re.compile(r'#include "((?:cuda|kernels)/[\w./]+)"')


class Bench:
    """The kernels of one module, each compiled once, when first needed, and again where a change touches it. Two dtypes
    are left out (``SPARED``).

    A module with ``PTX`` is of what only nvcc compiles: its launchers stay as they are, in every dtype, and the changed
    sources beside the library are for nvcc."""

    def __init__(self, module, folder):
        self.module, self.folder, self.csrc = module, folder, folder / "csrc"
        shutil.copytree(CSRC, self.csrc)
        if not executes_ptx(module):
            common = self.csrc / "cuda" / "common" / "kernel.cuh"
            spared = getattr(module, "SPARED", SPARED)
            text, count = re.subn(rf" *case DType::({'|'.join(spared)}):\n.*\n", "", common.read_text())
            assert count == len(spared), "kernel.cuh no longer lists the dtypes as expected"
            common.write_text(text)
        self.sources = [
            *(path for name in operations(module) for path in sorted((self.csrc / "cuda" / name).glob("*.c*[!h]"))),
            self.csrc / "cuda/common/plan.cpp",
        ]
        self.fixed = [
            *sorted(HERE.glob("*.cpp")),
            *(HERE / "operations" / f"{name}.cpp" for name in operations(module)),
        ]
        self.objects = {}

    @staticmethod
    def compile(source, folder, csrc):
        return compile_unit(source, folder / object_name(source), csrc, FLAGS)

    def reads(self, source, file, seen=None):
        """Whether ``source`` is ``file`` or includes it, directly or not."""
        if source == self.csrc / "cuda" / file:
            return True
        seen = set() if seen is None else seen
        seen.add(source)
        included = [self.csrc / name for name in INCLUDE.findall(source.read_text())]
        return any(self.reads(path, file, seen) for path in included if path not in seen)

    def library(self, name, mutation=None):
        """The kernels with this change, or as they are."""
        folder = self.folder / name
        shutil.copytree(self.csrc, folder / "csrc")
        touched = []
        if mutation:
            changed = source(self.module, mutation.file, folder / "csrc")
            changed.write_text(mutation.apply(changed.read_text()))
            touched = [source for source in [*self.sources, *self.fixed] if self.reads(source, mutation.file)]
            read = any(source in self.sources for source in touched)
            assert read, f"{mutation.name}: no source of the module reads {mutation.file}"
            if executes_ptx(self.module):
                touched = []
        missing = [source for source in [*self.sources, *self.fixed] if source not in {*touched, *self.objects}]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            whole = pool.map(lambda source: self.compile(source, self.folder, self.csrc), missing)
            copies = [folder / "csrc" / s.relative_to(self.csrc) if s in self.sources else s for s in touched]
            changed = pool.map(lambda source: self.compile(source, folder, folder / "csrc"), copies)
            self.objects.update(zip(missing, whole, strict=True))
            objects = self.objects | dict(zip(touched, changed, strict=True))
        return link(objects.values(), folder / "kernels.so")


def executes_ptx(module):
    return getattr(module, "PTX", False)


def noticed(module, library):
    """(check, what it says) of the first check that notices, or None. In a process of its own, because a mistake may
    end it, or go on for ever; and not in a copy of this one, whose threads a copy would wait for in vain."""
    # A server that has loaded torch, and never run a parallel region, makes the copies.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module.__name__ for module in modules().values()])
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=try_checks, args=(module.__name__, library, writer))
    child.start()
    writer.close()
    said = None
    try:
        late = not reader.poll(WAIT)
        if not late:
            said = reader.recv()
    except EOFError:  # it ended without a word
        late = False
    if late:
        child.kill()
    child.join()
    if late or child.exitcode == -signal.SIGXCPU:
        return "", f"not done after {WAIT if late else SECONDS} s"
    if said is None:
        return "", f"the process ends with status {child.exitcode}"
    return said if said[1] else None


def try_checks(name, library, writer):
    """What the checks of the module of this name say of a library, to whoever reads."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    writer.send(verdict(library, importlib.import_module(name)))


def verdict(library, module):
    """(check, what it says) of the first of the module's checks that notices, two empty texts if none does."""
    if executes_ptx(module):
        emulator = PtxEmulator(library, library.parent / "csrc", module.OPERATION)
    else:
        emulator = Emulator(library)
    with in_place_of_cpu_kernels(emulator):
        for check in module.CHECKS:
            try:
                said = check.run(emulator)
            except (KernelFault, Untranslatable) as fault:
                said = " ".join(str(fault).split())
            if said:
                return str(check), said
    return "", ""


def run_module(name, module, chosen, report):
    """Runs the mutations and reports each."""
    if of_cpu(module):
        run_cpu(name, module, chosen, report)
        return
    if executes_ptx(module) and why_absent():
        print(f"{name}: left out, {why_absent()}")
        return
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max(1, os.cpu_count() - 1)) as pool:
        bench = Bench(module, Path(folder))
        said = noticed(module, bench.library("whole"))
        assert said is None, f"{name}: the kernels as they are do not pass: {said}"
        libraries = [pool.submit(bench.library, str(n), mutation) for n, mutation in enumerate(chosen)]
        for number, mutation in enumerate(chosen):
            found = noticed(module, libraries[number].result())
            shutil.rmtree(bench.folder / str(number))
            report(mutation, found)


def run_cpu(name, module, chosen, report):
    """The same of the library that a CPU runs, which is built and asked in one process after the other."""
    with tempfile.TemporaryDirectory() as folder:
        library = CpuLibrary(Path(folder))
        said = library.noticed(module.CHECKS)
        assert said is None, f"{name}: the kernels as they are do not pass: {said}"
        for mutation in chosen:
            with library.changed(mutation) as built:
                # What does not compile is no mistake that a test could notice.
                report(mutation, library.noticed(module.CHECKS) if built else (page.SURVIVES, "does not compile"))


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.emulator.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="the mutations of one module", choices=sorted(modules()))
    parser.add_argument("--named", help="mutations whose name has one of these texts", nargs="+", default=[""])
    parser.add_argument(
        "--report",
        type=Path,
        help="write the tables into this Markdown file; mutants that it has killed are not run again",
    )
    parser.add_argument("--join", type=Path, nargs="+", help="run nothing: write the tables of these reports")
    parser.add_argument(
        "--behind", action="store_true", help=f"run nothing: what has changed since {PAGE.name} was made"
    )
    arguments = parser.parse_args()
    if arguments.behind:
        lines = list(page.behind(PAGE.read_text()))
        print("\n".join(lines) or "every table is of today's kernels and mutants")
        return len(lines) > 0
    begun = [arguments.report] if arguments.report and arguments.report.exists() and not arguments.join else []
    sections = {section.module: section for section in page.joined(f.read_text() for f in arguments.join or begun)}

    def report(section, mutation, found):
        print(section.add(mutation, found), flush=True)
        write()  # a run may be broken off

    def write():
        if arguments.report:
            arguments.report.write_text(page.page_of(section for section in sections.values() if section.rows))

    before = page.read(PAGE.read_text())
    for name, module in modules().items() if not arguments.join else ():
        section = page.of_today(sections.get(name), name, module)
        chosen = [mutation for mutation in mutations(module) if any(text in mutation.name for text in arguments.named)]
        chosen = page.never_run_first(chosen, section, before.get(name))
        if arguments.only not in (None, name) or not chosen:
            continue
        sections[name] = section
        run_module(name, module, chosen, functools.partial(report, section))
    survivors = [name for section in sections.values() for name in section.survivors]
    count = sum(len(section.rows) for section in sections.values())
    print(f"{count} mutants, {len(survivors)} survive: {', '.join(survivors) or 'none'}")
    write()
    return len(survivors) > 0


if __name__ == "__main__":
    sys.exit(main())
