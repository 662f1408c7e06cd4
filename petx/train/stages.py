"""The stages of a run: check the output folder, prepare the host, tune each arm, load an adapter again.

Each stage leaves its result whole on disk and is skipped where that is already there, so a run can be resumed.
"""

import dataclasses
import json
import shutil
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed

from petx.data.tasks import RoundRobinBatches
from petx.errors import UserError
from petx.files import require_writable, write_json, written_whole
from petx.train import checkpoints, recipe, scoring, tuned
from petx.train.trainer import training_arguments

SETTINGS = "settings.json"
MAY_CHANGE = ("output_dir", "resume", "arms", "with_arms", "seeds")  # in these a resumed run may differ


def say(text):
    if PartialState().is_main_process:
        print(text, flush=True)


def arm_folder(out, arm, seed):
    return out / arm / f"seed-{seed}"


def jobs(out, settings):
    """(arm, seed) pairs of the run: what ``settings`` want and what was begun in ``out``, in a fixed order."""
    for arm in settings.known_arms:
        begun = {int(folder.name.removeprefix("seed-")) for folder in (out / arm).glob("seed-*")}
        count = 1 if arm == "frozen" else settings.seeds  # nothing is random in the frozen host
        wanted = range(settings.seed, settings.seed + count) if arm in settings.all_arms else ()
        yield from ((arm, seed) for seed in sorted(begun.union(wanted)))


def check_output(out, settings):
    """Raise :class:`UserError` if ``out`` cannot be written, or holds a run that is not to be resumed like this."""
    require_writable(out, "output_dir")
    note = out / SETTINGS
    if not note.is_file():
        return
    if not settings.resume:
        raise UserError(f"output_dir {out} already holds a run: add --resume to go on with it, or choose another")
    before = json.loads(note.read_text(encoding="utf-8"))
    for name, value in dataclasses.asdict(settings).items():
        if name not in MAY_CHANGE and before.get(name) != value:
            raise UserError(f"{out} was begun with {name}={before.get(name)!r}, not {value!r}; resume with the same")


def prepare_host(out, run_data, settings):
    """The folder of the host; it is pretrained, or taken from ``settings.host``, unless it is already there."""
    folder, own = out / "host", recipe.find(settings.recipe)
    in_place = own.host_in_place(settings)
    if in_place is not None:
        return Path(in_place).resolve() if Path(in_place).is_dir() else in_place
    if folder.is_dir():
        return folder
    set_seed(settings.seed)
    if settings.host is None:
        model = own.small_host(settings, run_data)
        own.prepare_pretraining(model, settings)
        say(f"\nPretraining the host, {own.counts(model)['total']:,} parameters, on {own.pretraining}")
        args = training_arguments(
            out / "host-training",
            steps=settings.host_steps,
            lr=settings.host_lr,
            seed=settings.seed,
            settings=settings,
            evaluates=False,
        )
        sizes = [settings.host_batch_size] * len(run_data.pretraining)
        train(own.trainer(settings)(model, args, run_data.tokenizer, run_data.pretraining, sizes, decay=settings.decay))
    else:
        model = own.pretrained_host(settings, run_data)
    save_host(model, run_data.tokenizer, folder)
    discard(out / "host-training")
    return folder


def save_host(model, tokenizer, folder):
    if PartialState().is_main_process:
        with written_whole(folder) as target:
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
    PartialState().wait_for_everyone()


def discard(folder):
    if PartialState().is_main_process:
        shutil.rmtree(folder, ignore_errors=True)


def run_arm(arm, seed, out, host_folder, run_data, settings, place):
    """Tune and score one arm; its record, which also lies in ``result.json`` of :func:`arm_folder`."""
    folder = arm_folder(out, arm, seed)
    result = folder / "result.json"
    if result.is_file():
        return json.loads(result.read_text(encoding="utf-8"))
    own = recipe.find(settings.recipe)
    set_seed(seed)
    if arm in own.on_random_host:
        host_folder = folder / "host"
        if not host_folder.is_dir():
            save_host(own.small_host(settings, run_data), run_data.tokenizer, host_folder)
    model = own.build(arm, own.load_host(host_folder, settings), settings)
    record = {"arm": arm, "seed": seed, **own.counts(model), "steps": 0, "seconds": 0.0, "curve": None}
    title = own.arm_title(arm, record, settings)
    trained, total = record["trainable"], record["total"]
    say(f"\n{place} {title}, seed {seed}: {trained:,} of {total:,} parameters trained ({100 * trained / total:.2f} %)")

    if record["trainable"]:
        sizes = [settings.batch_sizes.get(task.name, settings.batch_size) for task in run_data.train]
        steps = settings.steps or settings.epochs * RoundRobinBatches.epoch_steps(list(map(len, run_data.train)), sizes)
        args = training_arguments(
            folder / "training", steps=steps, lr=own.learning_rate(arm, settings), seed=seed, settings=settings
        )
        trainer = own.trainer(settings)(
            model, args, run_data.tokenizer, run_data.train, sizes, dev_tasks=run_data.dev, decay=settings.decay
        )
        train(trainer)
        record |= {"steps": steps, "seconds": trainer.seconds, "curve": curve(trainer.state.log_history)}
    for split in ("dev", "test"):
        record[split] = score(model, getattr(run_data, split), run_data.tokenizer, settings)
    say("  test: " + ", ".join(f"{name} {value:.1f}" for name, value in record["test"].items()))
    if PartialState().is_main_process:
        if record["trainable"]:
            scores = {split: record[split] for split in ("dev", "test")}
            tuned.save(model, folder / "tuned", host_folder, arm=arm, seed=seed, settings=settings, scores=scores)
        write_json(result, record)
    PartialState().wait_for_everyone()
    discard(folder / "training")
    return record


def train(trainer):
    """Train from the last whole checkpoint in the trainer's folder, or from the start where there is none."""
    last = checkpoints.last_whole(trainer.args.output_dir)
    if last is not None:
        say(f"  going on from {last}")
    trainer.train(resume_from_checkpoint=None if last is None else str(last))


def curve(history):
    """Points of the curves, ``[step, value]``, from the trainer's log."""
    scored = [entry for entry in history if "eval_score" in entry]
    return {
        "loss": [[entry["step"], entry["loss"]] for entry in history if "loss" in entry],
        "dev": [[entry["step"], entry["eval_score"]] for entry in scored],
        "metric": scored[0]["eval_metric"] if scored else None,
    }


def score(model, tasks, tokenizer, settings):
    model.to(PartialState().device)
    return scoring.scores(model, tasks, tokenizer, batch_size=settings.eval_batch_size, num_beams=settings.num_beams)


def reproduces(arm, out, run_data, settings):
    """Load the saved ``arm`` into a fresh model and score it again; whether every digit is the recorded one."""
    folder = arm_folder(out, arm, settings.seed) / "tuned"
    loaded = tuned.load(folder)
    again, recorded = score(loaded.model, run_data.test, loaded.tokenizer, settings), loaded.manifest["scores"]["test"]
    name, value = next(iter(again.items()))
    same = "the same to the digit" if again == recorded else f"but {recorded[name]} was recorded"
    say(f"Loaded {folder} into a fresh model: {name} {value} on test, {same}.")
    return again == recorded
