"""The stages of a run: check the output folder, prepare the host, tune each arm, load an adapter again.

Each stage leaves its result whole on disk and is skipped where that is already there, so a run can be resumed.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn
from transformers import set_seed

from petx.baselines._sizes import counts
from petx.data.batches import RoundRobinBatches
from petx.errors import UserError
from petx.files import require_writable, write_json, written_whole
from petx.train import checkpoints, scoring, tuned

SETTINGS = "settings.json"
MAY_CHANGE = ("output_dir", "resume", "arms", "with_arms", "seeds")  # in these a resumed run may differ


def say(text: str) -> None:
    if PartialState().is_main_process:
        print(text, flush=True)


def jobs(run: Any) -> Iterator[tuple[str, int]]:
    """(arm, seed) pairs: what the settings want and what was begun in the output folder, in a fixed order."""
    settings = run.settings
    for arm in settings.known_arms():
        begun = {int(folder.name.removeprefix("seed-")) for folder in (run.out / arm).glob("seed-*")}
        count = 1 if arm == "frozen" else settings.seeds  # nothing is random in the frozen host
        wanted = range(settings.seed, settings.seed + count) if arm in settings.all_arms else ()
        yield from ((arm, seed) for seed in sorted(begun.union(wanted)))


def check_output(run: Any) -> None:
    """Raise :class:`UserError` if the output folder cannot be written, or holds a run not to be resumed like this."""
    require_writable(run.out, "output_dir")
    note = run.out / SETTINGS
    if not note.is_file():
        return
    if not run.settings.resume:
        raise UserError(f"output_dir {run.out} already holds a run: add --resume to go on with it, or choose another")
    for name, was, value in changed(json.loads(note.read_text(encoding="utf-8")), run.settings):
        raise UserError(f"{run.out} was begun with {name}={was!r}, not {value!r}; resume with the same")


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


def prepare_host(run: Any) -> str | Path:
    """The folder of the host; it is pretrained, or taken from ``settings.host``, unless it is already there."""
    folder, settings, host = run.out / "host", run.settings, run.host
    if settings.host is not None and host.in_place:
        return Path(settings.host).resolve() if Path(settings.host).is_dir() else settings.host
    if folder.is_dir():
        return folder
    set_seed(settings.seed)
    if settings.host is None:
        model = host.small(settings, run.data)
        host.prepare_pretraining(model, settings)
        say(f"\nPretraining the host, {counts(host, model)['total']:,} parameters, on {run.recipe.pretraining}")
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
        model = host.pretrained(settings, run.data.tokenizer)
    save_host(model, run.data.tokenizer, folder)
    discard(run.out / "host-training")
    return folder


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
    result = folder / "result.json"
    if result.is_file():
        return json.loads(result.read_text(encoding="utf-8"))
    set_seed(seed)
    if baseline.random_host:
        host_folder = folder / "host"
        if not host_folder.is_dir():
            save_host(run.host.small(settings, run.data), run.data.tokenizer, host_folder)
    model = baseline.build(run.host, run.host.load(host_folder, settings), settings)
    record = {"arm": arm, "seed": seed, **counts(run.host, model), **baseline.counts(model)}
    record |= {"steps": 0, "seconds": 0.0, "curve": None}
    title = run.title(arm, record)
    trained, total = record["trainable"], record["total"]
    say(f"\n{place} {title}, seed {seed}: {trained:,} of {total:,} parameters trained ({100 * trained / total:.2f} %)")

    if record["trainable"]:
        sizes = [settings.batch_sizes.get(task.name, settings.batch_size) for task in run.data.train]
        steps = settings.steps or settings.epochs * RoundRobinBatches.epoch_steps(list(map(len, run.data.train)), sizes)
        lr = baseline.learning_rate(settings)
        args = run.training_arguments(folder / "training", steps=steps, lr=lr, seed=seed)
        trainer = run.trainer(model, args, run.data.train, sizes, dev_tasks=run.data.dev)
        train(trainer)
        record |= {"steps": steps, "seconds": trainer.seconds, "curve": curve(trainer.state.log_history)}
    for split in ("dev", "test"):
        record[split] = score(run, model, getattr(run.data, split), run.data.tokenizer)
    say("  test: " + ", ".join(f"{name} {value:.1f}" for name, value in record["test"].items()))
    if PartialState().is_main_process:
        if record["trainable"]:
            scores = {split: record[split] for split in ("dev", "test")}
            tuned.save(model, folder / "tuned", host_folder, arm=arm, seed=seed, settings=settings, scores=scores)
        write_json(result, record)
    PartialState().wait_for_everyone()
    discard(folder / "training")
    return record


def train(trainer: Any) -> None:
    """Train from the last whole checkpoint in the trainer's folder, or from the start if there is none."""
    last = checkpoints.last_whole(trainer.args.output_dir)
    if last is not None:
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


def score(run: Any, model: nn.Module, tasks: list, tokenizer: Any) -> dict[str, float]:
    settings = run.settings
    model.to(PartialState().device)
    return scoring.scores(model, tasks, tokenizer, batch_size=settings.eval_batch_size, num_beams=settings.num_beams)


def reproduces(run: Any, arm: str) -> bool:
    """Load the saved ``arm`` into a fresh model and score it again; whether every digit is the recorded one."""
    folder = run.arm_folder(arm, run.settings.seed) / "tuned"
    loaded = tuned.load(folder)
    again, recorded = score(run, loaded.model, run.data.test, loaded.tokenizer), loaded.manifest["scores"]["test"]
    name, value = next(iter(again.items()))
    same = "the same to the digit" if again == recorded else f"but {recorded[name]} was recorded"
    say(f"Loaded {folder} into a fresh model: {name} {value} on test, {same}.")
    return again == recorded
