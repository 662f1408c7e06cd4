"""Running a study: every cell and seed a ``petx train`` of its own, in a child process, several at a time.

Below the output folder: ``cells/CELL/seed-N``, as ``petx train`` writes it, with ``cell.yaml`` and what was printed in
``log.txt``; ``hosts/N/seed-M``, small hosts that several cells share. What is finished is not run again.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
import yaml

from petx import _python
from petx.errors import UserError
from petx.files import held, read_json, require_writable, write_json, written_whole
from petx.studies.plan import Cell, Study, reasons_of
from petx.train.settings import Common, checked, laid_over, read_preset
from petx.train.stages import SETTINGS, changed

RESULTS, LOG = "results.json", "log.txt"
DONE = "done.json"  # of a run that ended well: its command, and how long it took


@dataclasses.dataclass(frozen=True)
class Job:
    """One ``petx train``: the settings it is run with, where it writes, and whose small host it takes."""

    title: str
    folder: Path
    settings: Common  # with its seed
    host: "Job | None" = None

    def results(self) -> dict[str, Any] | None:
        """What its report holds, if it ended well and has all its baselines; else None."""
        try:
            found = json.loads((self.folder / RESULTS).read_text(encoding="utf-8"))
            whole = (self.folder / DONE).is_file() and set(self.settings.all_arms) <= set(found["arms"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if whole else None

    def finished(self) -> bool:
        """Whether it ended well, and its report has all its baselines."""
        return self.results() is not None

    def check(self) -> None:
        """Raise UserError if the folder holds a run with other settings."""
        note = self.folder / SETTINGS
        if not note.is_file():
            return
        before = read_json(note, hint=f"remove {self.folder} to run it anew, or choose another --output_dir")
        differing = changed(before, self.settings)
        unused = reasons_of(self.settings, [name for name, _, _ in differing])
        for name, was, value in differing:
            if name in unused:  # as a study that was begun before may have recorded it
                continue
            raise UserError(
                f"{self.folder} was run with {name}={was!r}, not {value!r}: remove that folder to run it again, or "
                "choose another --output_dir"
            )


def jobs(study: Study, out: Path) -> tuple[list[Job], list[Job]]:
    """``(hosts, cells)``: runs of shared small hosts, and one run for each cell and seed."""
    hosts: list[Job] = []
    cells: list[Job] = []
    shared = _shared_hosts(study)
    for seed in study.seeds:
        made: dict[str, Job] = {}
        for cell in study.cells:
            key = _host_key(cell)
            if key in shared and key not in made:
                folder = out / "hosts" / str(shared.index(key)) / f"seed-{seed}"
                made[key] = _host_job(study, cell, folder, seed)
            folder = out / "cells" / cell.folder / f"seed-{seed}"
            settings = dataclasses.replace(cell.settings, seed=seed, seeds=1)
            cells.append(Job(f"{cell.name}, seed {seed}", folder, settings, made.get(key)))
        hosts += made.values()
    return hosts, cells


def _shared_hosts(study: Study) -> list[str]:
    """Keys of the small hosts that more than one cell needs, in order."""
    keys = [_host_key(cell) for cell in study.cells if getattr(cell.settings, "host", None) is None]
    return [key for key in dict.fromkeys(keys) if keys.count(key) > 1]


def _host_key(cell: Cell) -> str:
    """All that the pretraining of the cell's small host depends on, but the seed."""
    values = dataclasses.asdict(cell.settings)
    return json.dumps({name: value for name, value in values.items() if name not in cell.settings.after_host})


def _host_job(study: Study, cell: Cell, folder: Path, seed: int) -> Job:
    """The run that pretrains the small host of ``cell`` and scores it as it is."""
    kind = type(cell.settings)
    changes = {name: value for name, value in cell.changes.items() if name not in kind.after_host}
    changes |= {"arms": ["frozen"], "with_arms": []}
    values = laid_over(read_preset(kind, study.preset), changes) | {"seed": seed, "seeds": 1}
    return Job(f"small host, seed {seed}", folder, checked(kind, values))


def run(study: Study, out: Path, *, at_once: int, say: Callable[[str], None]) -> list[str]:
    """Run what is not finished, ``at_once`` at a time; titles of what failed, in order.

    Raises UserError before anything runs if ``out`` cannot be written, is in use by another study or holds runs with
    other settings. KeyboardInterrupt ends the children first; what they had finished stays.
    """
    require_writable(out, "output_dir")
    with held(out, "output_dir"):
        return _run(study, out, at_once, say)


def _run(study: Study, out: Path, at_once: int, say: Callable[[str], None]) -> list[str]:
    hosts, cells = jobs(study, out)
    for job in (*hosts, *cells):
        job.check()
    waiting = [job for job in cells if not job.finished()]
    for job in cells:
        check_metric(study, job)
    needed = {id(job.host) for job in waiting if not _has_host(job.folder)}
    begun = [job for job in hosts if id(job) in needed and not job.finished()]
    say(f"{len(cells)} runs, {len(cells) - len(waiting)} finished; writing to {out}")
    others = {folder.name for folder in (out / "cells").glob("*")} - {cell.folder for cell in study.cells}
    if others:
        say(f"no cells of this study, left alone: {', '.join(sorted(others))}")
    children = _Children(study, at_once)
    failed: list[str] = []
    with ThreadPoolExecutor(at_once) as pool:
        try:
            made = {id(job): pool.submit(children.run, job) for job in begun}
            futures: dict[Future, Job] = {future: job for job, future in zip(begun, made.values(), strict=True)}
            futures |= {pool.submit(children.run_cell, job, made.get(id(job.host))): job for job in waiting}
            for number, future in enumerate(as_completed(futures), 1):
                job, problem = futures[future], future.result()
                check_metric(study, job)  # after the first run, and not after the last
                failed += [job.title] if problem else []
                seconds = children.seconds.get(job.folder, 0.0)
                say(f"[{number}/{len(futures)}] {job.title}: {problem or f'done in {seconds:.0f} s'}")
        except BaseException:
            children.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def check_metric(study: Study, job: Job) -> None:
    """Raise UserError if ``job`` is finished and the study's metric is not among its scores."""
    found = job.results()
    for record in [record for records in found["arms"].values() for record in records] if found else ():
        if study.metric not in record["test"]:
            known = ", ".join(record["test"])
            raise UserError(f"metric {study.metric!r} is not a score of {job.title}; there are: {known}")


def _has_host(folder: Path) -> bool:
    return (folder / "host").is_dir()


class _Children:
    """The child processes of a study that run now."""

    def __init__(self, study: Study, at_once: int) -> None:
        self.study = study
        self.seconds: dict[Path, float] = {}
        self.running: set[subprocess.Popen] = set()
        self.lock, self.stopped = threading.Lock(), False
        share = str(max(1, torch.get_num_threads() // at_once))
        threads = {name: share for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.environment = os.environ | (threads if at_once > 1 else {})

    def run_cell(self, job: Job, host: Future | None) -> str | None:
        """:meth:`run`, once the small host that it shares is there; a copy of that goes into its folder."""
        if host is not None and host.result() is not None:
            return "not run, since its small host failed"
        if job.host is not None and not _has_host(job.folder):
            # What its run writes before the host, and is resumed with.
            write_json(job.folder / SETTINGS, dataclasses.asdict(job.settings))
            with written_whole(job.folder / "host") as target:
                shutil.copytree(job.host.folder / "host", target)
        return self.run(job)

    def run(self, job: Job) -> str | None:
        """Run one ``petx train`` to its end; what went wrong, in words, or None."""
        job.folder.mkdir(parents=True, exist_ok=True)
        # All settings, as a record has them: none counts as chosen, so that what a cell does not read is no mistake.
        values = dataclasses.asdict(job.settings)
        for own in ("output_dir", "resume", "seed", "seeds"):
            del values[own]
        (job.folder / "cell.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        command = _python.command("petx.cli", "train", self.study.method, "--preset", self.study.preset)
        command += ["--config", str(job.folder / "cell.yaml"), "--seed", str(job.settings.seed)]
        command += ["--seeds", "1", "--output_dir", str(job.folder)]
        command += ["--resume"] if (job.folder / SETTINGS).is_file() else []
        begun, log = time.monotonic(), job.folder / LOG
        with log.open("a", encoding="utf-8") as file:
            with self.lock:
                if self.stopped:
                    return "not run, since the study was stopped"
                child = subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=self.environment,
                    start_new_session=True,  # Ctrl-C reaches it through stop() alone, once
                )
                self.running.add(child)
            code = child.wait()
        with self.lock:
            self.running.discard(child)
        self.seconds[job.folder] = time.monotonic() - begun
        if code == 0:
            write_json(job.folder / DONE, {"command": command, "seconds": self.seconds[job.folder]})
            if job.finished():
                return None
        last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return f"failed with exit code {code}: {last[-1] if last else 'nothing was printed'} ({log})"

    def stop(self) -> None:
        """End the children as Ctrl-C does, so that they leave whole checkpoints; by SIGTERM, since a shell's background
        jobs ignore SIGINT."""
        with self.lock:
            self.stopped = True
            for child in self.running:
                child.send_signal(signal.SIGTERM)
