"""One training: exact resuming, whole checkpoints, loss and weight decay."""

import errno
import json
import math
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file

from petx import ops
from petx.errors import UserError
from petx.train import checkpoints, stages, vlpet
from petx.train.run import Run
from petx.train.trainer import Progress
from petx.train.vlpet import arguments
from petx.tuners import describe
from tests.fixtures import image_text as fixture


def make_trainer(own, folder, *, steps=8, arm="vlpet", decay="clean", workers=0, callbacks=(), lr=1e-2):
    from transformers import set_seed

    more = dict(save_every=3, log_every=3, dropout=0.2, workers=workers, decay=decay)
    run = Run(vlpet.RECIPE, fixture.settings(own, folder, **more))
    run.prepare()
    run.load_data()
    set_seed(7)
    model = run.baseline(arm).build(run.host, run.host.pretrained(run.settings, run.data.tokenizer), run.settings)
    args = run.training_arguments(folder, steps=steps, lr=lr, seed=7)
    sizes = [run.settings.batch_sizes[task.name] for task in run.data.train]
    trainer = run.trainer(model, args, run.data.train, sizes, run.data.dev)
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


class StopAt(Progress):
    """Ctrl-C in the middle of training."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [5, 2])  # a log is in between, or only the end
def test_a_training_that_diverged_is_told_and_not_shown_as_the_losses_before(own, tmp_path, steps):
    trainer = make_trainer(own, tmp_path, steps=steps, lr=1e38)
    with pytest.raises(UserError, match=rf"diverged: at step {min(steps, 3)} .* not finite. Its learning rate was 1e"):
        trainer.train()
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_workers_that_are_not_forked_can_be_sent_the_data(own, tmp_path):
    """As Python 3.14 starts them, and any with ``--trainer.dataloader_multiprocessing_context=spawn``."""
    trainer = make_trainer(own, tmp_path)
    (wanted, *_) = trainer.get_train_dataloader()
    trainer.mixture, trainer.data_collator = pickle.loads(pickle.dumps((trainer.mixture, trainer.data_collator)))
    (got, *_) = trainer.get_train_dataloader()
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(got[name], value) if isinstance(value, torch.Tensor) else got[name] == value, name


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["vlpet", "full"])
def test_a_resumed_training_ends_in_the_same_bits(own, tmp_path, arm):
    straight = make_trainer(own, tmp_path / "straight", arm=arm)
    stages.train(straight)
    wanted = checkpoints.trainable_state(straight.model)
    if arm == "vlpet":
        told = describe(straight.model)
        assert "fused: " in told and "not fused" not in told

    with pytest.raises(KeyboardInterrupt):
        stages.train(make_trainer(own, tmp_path / "resumed", arm=arm, callbacks=[StopAt(5)]))
    assert checkpoints.last_whole(tmp_path / "resumed").name == "checkpoint-3"
    resumed = make_trainer(own, tmp_path / "resumed", arm=arm)
    torch.manual_seed(99)  # whatever happened in between does not matter
    stages.train(resumed)
    assert resumed.state.global_step == 8
    got = checkpoints.trainable_state(resumed.model)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())
    assert stages.curve(resumed.state.log_history) == stages.curve(straight.state.log_history)

    if arm == "vlpet":
        by_workers = make_trainer(own, tmp_path / "workers", arm=arm, workers=2)
        stages.train(by_workers)
        got = checkpoints.trainable_state(by_workers.model)
        assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())

    again = make_trainer(own, tmp_path / "resumed", arm=arm)  # interrupted after the end: nothing is left to do
    stages.train(again)
    assert all(torch.equal(checkpoints.trainable_state(again.model)[name], tensor) for name, tensor in wanted.items())


@pytest.mark.slow
def test_a_resume_on_another_path_says_so(own, tmp_path, capsys, monkeypatch):
    stages.train(make_trainer(own, tmp_path, steps=3))
    assert checkpoints.other_paths(checkpoints.last_whole(tmp_path)) == []
    monkeypatch.setattr(ops, "_fused", ops._fused - {("gated_adapter", "cpu")})
    capsys.readouterr()
    stages.train(make_trainer(own, tmp_path, steps=4))
    said = "the end will not be the same to the bit: gated_adapter on the CPU: kernel before, reference now"
    assert said in capsys.readouterr().out


@pytest.mark.slow
def test_a_half_written_checkpoint_is_not_taken(own, tmp_path):
    stages.train(make_trainer(own, tmp_path, steps=3))
    whole = checkpoints.last_whole(tmp_path)
    assert whole.name == "checkpoint-3"
    saved = load_file(whole / checkpoints.TENSORS)
    model = make_trainer(own, tmp_path / "other").model
    assert saved.keys() == checkpoints.trainable_state(model).keys()  # what is trained and nothing else
    cut = shutil.copytree(whole, tmp_path / "checkpoint-6")
    with open(cut / "optimizer.pt", "r+b") as file:
        file.truncate(100)
    shutil.copytree(whole, tmp_path / "checkpoint-7")
    (tmp_path / "checkpoint-7" / checkpoints.MARKER).unlink()
    shutil.copytree(whole, tmp_path / "checkpoint-8")
    (tmp_path / "checkpoint-8" / checkpoints.TENSORS).unlink()
    shutil.copytree(whole, tmp_path / ".checkpoint-9-x" / "checkpoint-9")  # killed before the renaming
    assert checkpoints.last_whole(tmp_path) == whole


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_whole_checkpoint(own, tmp_path, monkeypatch):
    save = checkpoints.save_file

    def full(tensors, path, **kwargs):
        save(tensors, path, **kwargs)
        if "checkpoint-6" in str(path):
            with open(path, "r+b") as file:
                file.truncate(50)
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(
        UserError, match="cannot write .*checkpoint-6: .*No space left.* The last whole checkpoint is kept"
    ):
        stages.train(make_trainer(own, tmp_path))
    assert [path.name for path in tmp_path.iterdir() if "checkpoint" in path.name] == ["checkpoint-3"]
    monkeypatch.setattr(checkpoints, "save_file", save)
    trainer = make_trainer(own, tmp_path)
    stages.train(trainer)
    assert trainer.state.global_step == 8


def test_weights_of_another_model_are_refused(own, tmp_path):
    stages.train(make_trainer(own, tmp_path, steps=3))
    other = make_trainer(own, tmp_path / "other", arm="full").model
    before = {name: tensor.clone() for name, tensor in checkpoints.trainable_state(other).items()}
    with pytest.raises(UserError, match="is missing|not trained here"):
        checkpoints.load_trainable(other, checkpoints.last_whole(tmp_path))
    assert all(torch.equal(before[name], tensor) for name, tensor in checkpoints.trainable_state(other).items())


@pytest.mark.slow
def test_an_interrupted_run_goes_on(own, tmp_path, capsys, monkeypatch):
    """Ctrl-C in the second arm: the host and the first arm are kept, and the end is the same as without it."""
    more = dict(arms=["vlpet", "full"], epochs=1, num_beams=1)
    assert vlpet.run(fixture.settings(own, tmp_path / "straight", **more)) == 0

    step = Progress.on_step_end

    def interrupt(self, args, state, control, **kwargs):
        if "full" in args.output_dir and state.global_step == 6:
            raise KeyboardInterrupt
        step(self, args, state, control, **kwargs)

    out = tmp_path / "resumed"
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_step_end", interrupt)
        patch.setattr(arguments, "parse", lambda *_: fixture.settings(own, out, **more))
        assert vlpet.main([]) == 130
    assert "--resume" in capsys.readouterr().out
    kept = [out / "host" / "model.safetensors", out / "vlpet" / "seed-42" / "tuned" / "adapter_model.safetensors"]
    times = [file.stat().st_mtime_ns for file in kept]
    assert vlpet.run(fixture.settings(own, out, resume=True, **more)) == 0
    assert "going on from" in capsys.readouterr().out
    assert [file.stat().st_mtime_ns for file in kept] == times
    for arm, name in (("vlpet", "adapter_model.safetensors"), ("full", checkpoints.TENSORS)):
        got, wanted = (load_file(tmp_path / run / arm / "seed-42" / "tuned" / name) for run in ("resumed", "straight"))
        assert all(torch.equal(got[key], wanted[key]) for key in wanted) and got.keys() == wanted.keys()


def test_weight_decay_groups(own, tmp_path):
    model = make_trainer(own, tmp_path).model

    def decayed(decay):
        trainer = make_trainer(own, tmp_path, decay=decay)
        return {name for name in trainer.get_decay_parameter_names(model) if model.get_parameter(name).requires_grad}

    clean, paper = decayed("clean"), decayed("paper")
    extra = paper - clean
    assert clean < paper and all("norm" in name and name.endswith("weight") for name in extra)
    assert any("layer_norm" in name for name in extra)  # BART's name escapes the released code's pattern
    assert not any(name.endswith("bias") for name in paper)


def test_loss_weighs_samples_by_score(own, tmp_path):
    trainer = make_trainer(own, tmp_path)
    model = trainer.model.eval()
    task = next(task for task in trainer.tasks if task.name == "vqa")
    items = [task[i, 0] for i in range(3)]
    single = []
    for item in items:
        batch = trainer.data_collator([item])
        single.append(trainer.compute_loss(model, dict(batch)).item())  # each weighted by its score
    together = trainer.compute_loss(model, trainer.data_collator(items)).item()
    assert together == pytest.approx(sum(single) / 3, rel=1e-5)
    halved = trainer.data_collator([item | {"weight": item["weight"] / 2} for item in items])
    assert trainer.compute_loss(model, halved).item() == pytest.approx(together / 2, rel=1e-5)


@pytest.mark.slow
def test_arms_and_seeds_are_added_to_a_finished_run(own, tmp_path):
    out, more = tmp_path / "out", dict(epochs=1, num_beams=1)
    assert vlpet.run(fixture.settings(own, out, **more)) == 0
    first = out / "vlpet" / "seed-42" / "result.json"
    before = first.stat().st_mtime_ns
    assert vlpet.run(fixture.settings(own, out, arms=["projector"], resume=True, **more)) == 0
    assert vlpet.run(fixture.settings(own, out, seeds=2, resume=True, **more)) == 0
    runs = json.loads((out / "results.json").read_text())["arms"]
    assert {arm: [record["seed"] for record in records] for arm, records in runs.items()} == {
        "projector": [42],
        "vlpet": [42, 43],
    }
    assert first.stat().st_mtime_ns == before


def test_a_late_process_makes_what_an_early_one_makes(tmp_path, monkeypatch):
    """Otherwise one would wait in vain for the other, which found the host and went on."""
    monkeypatch.setattr(stages.PartialState, "wait_for_everyone", lambda self: (tmp_path / "host").mkdir())
    assert not stages._is_there(tmp_path / "host")
