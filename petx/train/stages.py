"""The stages of a run: check the output folder, prepare the host, tune each arm, load an adapter again.

Each stage leaves its result whole on disk and is skipped where that is already there, so a run can be resumed.
"""

import dataclasses
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn
from transformers import set_seed

from petx import hosts
from petx.baselines._sizes import counts
from petx.data import predictions
from petx.data.batches import RoundRobinBatches
from petx.errors import UserError
from petx.files import damaged_files, read_json, write_json, written_whole
from petx.tasks.easy_vqa import lesson_words
from petx.train import checkpoints, heads, scoring, trainer_flags, tuned, unread
from petx.train.best import BestState

SETTINGS, RESULT, PREDICTIONS = "settings.json", "result.json", "predictions"
MAY_CHANGE = ("output_dir", "resume", "arms", "with_arms", "seeds")  # in these a resumed run may differ


def say(text: str) -> None:
    if PartialState().is_main_process:
        print(text, flush=True)


def jobs(run: Any) -> Iterator[tuple[str, int]]:
    """(arm, seed) pairs: what the settings want and what was begun in the output folder, in a fixed order."""
    settings = run.settings
    for arm in settings.known_arms():
        count = 1 if arm == "frozen" else settings.seeds  # nothing is random in the frozen host
        wanted = range(settings.seed, settings.seed + count) if arm in settings.all_arms else ()
        yield from ((arm, seed) for seed in sorted(begun(run.out / arm).union(wanted)))


def begun_arms(out: Path, settings: Any) -> list[str]:
    """The arms that were begun in the output folder ``out``."""
    return [arm for arm in settings.known_arms() if begun(out / arm)]


def begun(folder: Path) -> set[int]:
    """The seeds that were begun in the folder of an arm; what else lies there is not a run's."""
    found = [re.fullmatch(r"seed-(0|[1-9]\d*)", path.name) for path in folder.glob("seed-*") if path.is_dir()]
    return {int(match[1]) for match in found if match}


def check_output(run: Any) -> None:
    """Raise :class:`UserError` if the output folder holds a run that is not to be resumed like this, or is damaged."""
    note, known = run.out / SETTINGS, run.settings.known_arms()
    parts = [run.out / name for name in ("host", "host-training") if (run.out / name).exists()]
    parts += [run.arm_folder(arm, seed) for arm in known for seed in sorted(begun(run.out / arm))]
    if not note.is_file():
        if parts:  # what lies there may be of other settings, and nothing tells
            raise UserError(
                f"output_dir {run.out} has no {SETTINGS} but holds {parts[0]} of another run: choose another"
            )
        return
    if not run.settings.resume:
        raise UserError(f"output_dir {run.out} already holds a run: add --resume to go on with it, or choose another")
    before = read_json(note, hint="without it the run cannot go on: put it back, or choose another output_dir")
    differing = changed(before, run.settings)
    arms = {*begun_arms(run.out, run.settings), *_arms_of(before, run.settings)}  # what none reads may be chosen now
    unused = unread.reasons(run.settings, [name for name, _, _ in differing], arms=arms, host=run.host)
    for name, was, value in differing:
        if name in unused:
            continue
        raise UserError(f"{run.out} was begun with {name}={was!r}, not {value!r}; resume with the same")
    for arm, seed in jobs(run):
        finished(run.arm_folder(arm, seed))
    if (run.out / "host").is_dir():
        hosts.check_files(run.out / "host", "put it back, or remove the folder 'host' and all arms to begin again")


def _arms_of(before: dict[str, Any], settings: Any) -> list[str]:
    """The arms of the run that was begun with ``before``."""
    lists = {name: before.get(name) or [] for name in ("arms", "with_arms")}
    return [arm for arm in dataclasses.replace(settings, **lists).all_arms if arm in settings.known_arms()]


def changed(before: dict[str, Any], settings: Any) -> list[tuple[str, Any, Any]]:
    """``(name, was, is)`` of the settings in which a run begun with ``before`` must not differ, and does."""
    found = []
    for field in dataclasses.fields(settings):
        # A setting that an older petx did not have was at its default.
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        was, value = before.get(field.name, default), getattr(settings, field.name)
        if field.name not in MAY_CHANGE and was != value:
            found.append((field.name, was, value))
    return found


def finished(folder: Path) -> dict[str, Any] | None:
    """The record of the arm in ``folder``; None unless it is finished."""
    result = folder / RESULT
    needed = ("arm", "seed", "trainable", "total", "steps", "seconds", "curve", "dev", "test")
    return read_json(result, *needed, hint="remove it to train this arm again") if result.is_file() else None


def prepare_host(run: Any) -> str | Path:
    """The folder of the host; it is pretrained, or taken from ``settings.host``, unless it is already there."""
    folder, settings, host = run.out / "host", run.settings, run.host
    if settings.host is not None and host.in_place:
        return Path(settings.host).resolve() if Path(settings.host).is_dir() else settings.host
    if _is_there(folder):
        return folder
    set_seed(settings.seed)
    if settings.host is None:
        model = host.small(settings, run.data)
        host.prepare_pretraining(model, settings)
        size, lessons = counts(host, model)["total"], run.source.pretraining or lesson_words(host.lessons_of(settings))
        say(f"\nPretraining the host, {size:,} parameters, on {lessons}")
        args = run.training_arguments(
            run.out / "host-training",
            steps=settings.host_steps,
            lr=settings.host_lr,
            seed=settings.seed,
            evaluates=False,
        )
        sizes = [settings.host_batch_size] * len(run.data.pretraining)
        train(run.trainer(model, args, run.data.pretraining, sizes))
    else:
        model = hosts.pretrained(host, settings, run.data.tokenizer)
    save_host(model, run.data.tokenizer, folder)
    discard(run.out / "host-training")
    return folder


def _is_there(folder: Path) -> bool:
    """Whether ``folder`` is there, before any process goes on to make it: else a late one would find what an early one
    made, and not join in making it."""
    found = folder.is_dir()
    PartialState().wait_for_everyone()
    return found


def save_host(model: Any, tokenizer: Any, folder: str | Path) -> None:
    if PartialState().is_main_process:
        with written_whole(folder) as target:
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
    PartialState().wait_for_everyone()


def discard(folder: str | Path) -> None:
    if PartialState().is_main_process:
        shutil.rmtree(folder, ignore_errors=True)


def run_arm(run: Any, arm: str, seed: int, place: str) -> dict[str, Any]:
    """Tune and score one arm; its record, which also lies in ``result.json`` of its folder."""
    folder, settings, host_folder, baseline = (
        run.arm_folder(arm, seed),
        run.settings,
        run.host_folder,
        run.baseline(arm),
    )
    done = finished(folder)
    if done is not None:
        return done
    set_seed(seed)
    if baseline.random_host:
        host_folder = folder / "host"
        if not _is_there(host_folder):
            save_host(run.host.small(settings, run.data), run.data.tokenizer, host_folder)
    model = heads.built(baseline, run.host, hosts.load(run.host, host_folder, settings), settings)
    record = {"arm": arm, "seed": seed, **counts(run.host, model), **baseline.counts(model)}
    record |= {"steps": 0, "seconds": 0.0, "step_ms": None, "curve": None}
    title = run.title(arm, record)
    trained, total = record["trainable"], record["total"]
    say(f"\n{place} {title}, seed {seed}: {trained:,} of {total:,} parameters trained ({100 * trained / total:.2f} %)")

    if record["trainable"]:
        sizes = batch_sizes(run)
        planned, lr = steps(run, sizes), baseline.learning_rate(settings)
        args = run.training_arguments(folder / "training", steps=planned, lr=lr, seed=seed)
        trainer_flags.writes_tensorboard(settings.trainer, folder / "tensorboard")
        trainer = run.trainer(model, args, run.data.train, sizes, dev_tasks=run.data.dev)
        best = BestState(trainer) if settings.keep == "best" else None
        train(trainer)
        if best is not None:
            record["kept"] = best.restore()
            say(f"  kept the best state, of step {record['kept']['step']}: dev {record['kept']['score']:.1f}")
        record |= {"steps": planned, "seconds": trainer.seconds, "curve": curve(trainer.state.log_history)}
        record["step_ms"] = trainer.step_ms
    for split in ("dev", "test"):
        record[split], texts = evaluate(run, model, getattr(run.data, split), run.data.tokenizer)
        if PartialState().is_main_process:
            predictions.write(folder / PREDICTIONS, split, getattr(run.data, split), texts)
    scored = ", ".join(f"{name} {value:.1f}" for name, value in record["test"].items())
    say(f"  test: {scored or f'no answers to score; predictions in {folder / PREDICTIONS}'}")
    if PartialState().is_main_process:
        if record["trainable"]:
            scores = {split: record[split] for split in ("dev", "test")}
            tuned.save(model, folder / "tuned", host_folder, arm=arm, seed=seed, settings=settings, scores=scores)
        write_json(folder / RESULT, record)
    PartialState().wait_for_everyone()
    discard(folder / "training")
    return record


def batch_sizes(run: Any) -> list[int]:
    """Examples in a step, for each training task."""
    return [run.settings.batch_sizes.get(task.name, run.settings.batch_size) for task in run.data.train]


def steps(run: Any, sizes: list[int]) -> int:
    """How many steps a training of ``run`` has."""
    if run.settings.drop_last:
        for task, size in zip(run.data.train, sizes, strict=True):
            if len(task) < size:
                raise UserError(
                    f"drop_last leaves no batch of task {task.name}: {len(task)} examples, batches of {size}"
                )
    an_epoch = RoundRobinBatches.epoch_steps(list(map(len, run.data.train)), sizes, run.settings.drop_last)
    return run.settings.steps or math.ceil(run.settings.epochs * an_epoch / run.settings.accumulated)


def train(trainer: Any) -> None:
    """Train from the last whole checkpoint in the trainer's folder, or from the start if there is none."""
    last = checkpoints.last_whole(trainer.args.output_dir)
    if last is not None:
        for name, reason in damaged_files(last).items():
            raise UserError(f"{last / name} is damaged ({reason}); remove {last} to begin this training again")
        say(f"  going on from {last}")
        for difference in checkpoints.other_paths(last):
            say(f"  the end will not be the same to the bit: {difference}")
    trainer.train(resume_from_checkpoint=None if last is None else str(last))


def curve(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Points of the curves, ``[step, value]``, from the trainer's log."""
    scored = [entry for entry in history if "eval_score" in entry]
    return {
        "loss": [[entry["step"], entry["loss"]] for entry in history if "loss" in entry],
        "dev": [[entry["step"], entry["eval_score"]] for entry in scored],
        "metric": scored[0]["eval_metric"] if scored else None,
    }


def evaluate(run: Any, model: nn.Module, tasks: list, tokenizer: Any) -> tuple[dict[str, float], dict[str, list[Any]]]:
    settings = run.settings
    model.to(PartialState().device)
    return scoring.evaluate(model, tasks, tokenizer, batch_size=settings.eval_batch_size, num_beams=settings.num_beams)


def reproduces(run: Any, arm: str) -> bool:
    """Load the saved ``arm`` into a fresh model and score it again; whether every digit is the recorded one.

    Without a score, whether the predictions are the written ones.
    """
    folder = run.arm_folder(arm, run.settings.seed) / "tuned"
    loaded = tuned.load(folder)
    again, texts = evaluate(run, loaded.model, run.data.test, loaded.tokenizer)
    recorded = loaded.manifest["scores"]["test"]
    if not again:
        same_texts = predictions.same(folder.parent / PREDICTIONS, "test", run.data.test, texts)
        say(f"Loaded {folder} into a fresh model: its predictions on test are {'' if same_texts else 'not '}the same.")
        return same_texts
    name, value = next(iter(again.items()))
    same = "the same to the digit" if again == recorded else f"but {recorded[name]} was recorded"
    say(f"Loaded {folder} into a fresh model: {name} {value} on test, {same}.")
    return again == recorded
