"""A run of a recipe from its command line to the table at the end."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from safetensors import SafetensorError
from torch import nn
from transformers import Seq2SeqTrainingArguments

from petx import baselines, tasks
from petx._quiet import ignore_known_warnings
from petx.baselines import Baseline
from petx.errors import UserError
from petx.files import disk_is_full, held, require_writable, write_json
from petx.tasks import RunData
from petx.train import best, dry_run, plots, rehearsal, report, stages, stopping, trainer_flags, unread
from petx.train.recipe import Recipe
from petx.train.settings import Common
from petx.train.trainer import PetTrainer, training_arguments


def _memory_is_full(error: BaseException) -> bool:
    said = "DefaultCPUAllocator" in str(error)  # as torch says it of a CPU
    return said or isinstance(error, torch.OutOfMemoryError | MemoryError)


class Run:
    """One run: what it is made of, handed on whole to its stages.

    Attributes:
        recipe: :class:`petx.train.recipe.Recipe`.
        settings: :class:`petx.train.settings.Common` of that recipe.
        out: output folder.
        source: :class:`petx.tasks.Source` that ``settings.data`` names.
        host: class of :class:`petx.hosts.Host` that ``settings`` name; None until it is known to be there.
        data: :class:`petx.tasks.RunData`; None until it is loaded.
        host_folder: folder or hub name of the frozen host; None until it is prepared.
    """

    def __init__(self, recipe: Recipe, settings: Common) -> None:
        assert settings.output_dir is not None  # :func:`petx.train.settings.parse` gives it its default
        self.recipe, self.settings, self.out = recipe, settings, Path(settings.output_dir)
        self.source = tasks.source(settings.data)
        self.host: Any = None
        self.data: Any = None
        self.host_folder: Any = None

    def baseline(self, arm: str) -> Baseline:
        """The baseline called ``arm``."""
        return baselines.find(arm, self.recipe.name)

    def arm_folder(self, arm: str, seed: int) -> Path:
        """Where the training of ``arm`` with ``seed`` is kept."""
        return self.out / arm / f"seed-{seed}"

    def title(self, arm: str, record: dict[str, Any]) -> str:
        """The title of ``arm`` for one of its records."""
        return self.baseline(arm).titled(self.host, self.settings, record)

    def training_arguments(
        self, output_dir: Path, *, steps: int, lr: float, seed: int, evaluates: bool = True
    ) -> Seq2SeqTrainingArguments:
        """:func:`petx.train.trainer.training_arguments` with this run's settings."""
        more = self.recipe.training_options(self.settings)
        return training_arguments(output_dir, self.settings, steps=steps, lr=lr, seed=seed, evaluates=evaluates, **more)

    def trainer(
        self,
        model: nn.Module,
        args: Seq2SeqTrainingArguments,
        tasks: list,
        batch_sizes: list[int],
        dev_tasks: list | tuple = (),
    ) -> PetTrainer:
        """The recipe's trainer of ``model`` on ``tasks``."""
        return self.recipe.trainer(model, args, self.data.tokenizer, tasks, batch_sizes, self.settings, dev_tasks)

    def prepare(self) -> None:
        """Find the host and check that everything is there that will be read, before any work."""
        trainer_flags.check_machine(self.settings.trainer)
        self.host = self.recipe.prepared_host(self.settings)
        unread.check(self.settings, self.host, more_arms=stages.begun_arms(self.out, self.settings))
        try:
            trainer_flags.check_optimizer(self.training_arguments(self.out, steps=1, lr=1.0, seed=0))
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error

    def load_data(self) -> RunData:
        """:attr:`data`, as the host reads it."""
        self.data = self.source.load(self.settings, self.host)
        return self.data

    def main(self) -> int:
        """:meth:`execute`, with words for an interruption and a full disk; returns the exit code.

        SIGTERM, as schedulers send, and SIGHUP, of a closed terminal, end a run as Ctrl-C does.
        """
        resume = f"What was finished, and the last whole checkpoint, is in {self.out}; --resume goes on from there."
        try:
            with stopping.as_interruption():
                return self.execute()
        except KeyboardInterrupt as stop:
            stopping.last_words(f"\n{stopping.name(stop)}. {resume}")
            return stopping.exit_code(stop)
        except BrokenPipeError:
            stopping.last_words(f"\nThe output was closed. {resume}")
            return 1
        except (OSError, SafetensorError) as error:
            if not disk_is_full(error):
                raise
            raise UserError(f"the disk is full: {error}. Make room first. {resume}") from error
        except (RuntimeError, MemoryError) as error:
            if not _memory_is_full(error):
                raise
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"the memory is full: {first}. A smaller batch_size or eval_batch_size takes less"
            ) from error

    def execute(self) -> int:
        """All stages; 0, or 1 if the saved adapter did not reproduce its score. A dry run says what they would do."""
        transformers.utils.logging.disable_progress_bar()  # of loading and saving, not of training
        ignore_known_warnings()
        state = PartialState(cpu=not torch.cuda.is_available())
        self.prepare()
        if self.settings.dry_run:
            self.load_data()
            best.check(self)
            for line in dry_run.lines(self):
                stages.say(line)
            return 0
        require_writable(self.out, "output_dir")
        with held(self.out, "output_dir") if state.is_main_process else contextlib.nullcontext():
            return self._stages(state)

    def _stages(self, state: PartialState) -> int:
        settings, out = self.settings, self.out
        stages.check_output(self)
        stages.say(f"Writing to {out}")
        if notice := getattr(settings, "notice", None):
            stages.say(f"This takes longer: {notice}.")
        with state.main_process_first():  # the first writes the features to the cache, the others read them there
            self.load_data()
        best.check(self)
        rehearsal.check(self)
        if state.is_main_process:
            write_json(out / stages.SETTINGS, dataclasses.asdict(settings))
        self.host_folder = stages.prepare_host(self)

        results: dict[str, Any] = {
            "settings": dataclasses.asdict(settings),
            "baselines": self.data.baselines,
            "arms": {},
        }
        jobs = list(stages.jobs(self))
        for number, (arm, seed) in enumerate(jobs, 1):
            record = stages.run_arm(self, arm, seed, f"[{number}/{len(jobs)}]")
            results["arms"].setdefault(arm, []).append(record)
        return self._conclude(results, state)

    def _conclude(self, results: dict[str, Any], state: PartialState) -> int:
        files = []
        if state.is_main_process:
            print(f"\n{report.write(self, results)}", flush=True)
            files = [self.out / "results.md", self.out / "results.json", *plots.write_curves(self, results)]
        done = results["arms"]
        shown = [arm for arm in (self.recipe.name, *done) if arm in done and arm != "frozen"][:1]
        reproduced = all([stages.reproduces(self, arm) for arm in shown])
        for arm in shown:
            stages.say(f"adapter  {self.arm_folder(arm, self.settings.seed) / 'tuned'}")
        for file in files:
            stages.say(f"{'curves ' if file.suffix == '.png' else 'table  '}  {file}")
        return 0 if reproduced else 1
