"""A run of a recipe from its command line to the table at the end."""

import dataclasses
import warnings
from pathlib import Path

import torch
import transformers
from accelerate import PartialState
from safetensors import SafetensorError

from petx.errors import UserError
from petx.files import write_json
from petx.train import plots, recipe, report, stages


def main(settings):
    """Run the recipe of ``settings``; returns the exit code."""
    resume = (
        f"What was finished, and the last whole checkpoint, is in {settings.output_dir}; --resume goes on from there."
    )
    try:
        return run(settings)
    except KeyboardInterrupt:
        stages.say(f"\nInterrupted. {resume}")
        return 130
    except (OSError, SafetensorError) as error:
        if "No space left" not in str(error) and "Disk quota exceeded" not in str(error):
            raise
        raise UserError(f"the disk is full: {error}. Make room first. {resume}") from error


def run(settings):
    """Run the recipe of ``settings``; 0, or 1 if the saved adapter did not reproduce its score."""
    transformers.utils.logging.disable_progress_bar()  # of loading and saving, not of training
    # PEFT 0.21 asks transformers 5 by the old name; nothing here depends on it.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    own = recipe.find(settings.recipe)
    state, out = PartialState(cpu=not torch.cuda.is_available()), Path(settings.output_dir)
    own.check_available(settings)
    stages.check_output(out, settings)
    stages.say(f"Writing to {out}")
    if getattr(settings, "notice", None):
        stages.say(f"This takes longer: {settings.notice}.")
    with state.main_process_first():  # the first writes the features to the cache, the others read them there
        run_data = own.load_data(settings)
    if state.is_main_process:
        write_json(out / stages.SETTINGS, dataclasses.asdict(settings))
    host_folder = stages.prepare_host(out, run_data, settings)

    results = {"settings": dataclasses.asdict(settings), "baselines": run_data.baselines, "arms": {}}
    jobs = list(stages.jobs(out, settings))
    for number, (arm, seed) in enumerate(jobs, 1):
        record = stages.run_arm(arm, seed, out, host_folder, run_data, settings, f"[{number}/{len(jobs)}]")
        results["arms"].setdefault(arm, []).append(record)

    files = []
    if state.is_main_process:
        print(f"\n{report.write(out, results, settings)}", flush=True)
        files = [out / "results.md", out / "results.json", *plots.write_curves(out, results, settings)]
    shown = [arm for arm in (own.main_arm, *results["arms"]) if arm in results["arms"] and arm != "frozen"][:1]
    reproduced = all([stages.reproduces(arm, out, run_data, settings) for arm in shown])
    for arm in shown:
        stages.say(f"adapter  {stages.arm_folder(out, arm, settings.seed) / 'tuned'}")
    for file in files:
        stages.say(f"{'curves ' if file.suffix == '.png' else 'table  '}  {file}")
    return 0 if reproduced else 1
