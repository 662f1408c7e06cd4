"""``torchrun`` with two processes on a CPU (gloo): PETAL trains as in one, and goes on with what one began."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from petx.train import petal
from petx.train.trainer import Progress
from tests.fixtures import instruct_blip as fixture


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped_and_end_as_one_does(tmp_path, monkeypatch):
    fixture.write_host(tmp_path / "host")
    fixture.write_data(tmp_path / "data", images=8)  # two batches of four in an epoch
    more = dict(arms=["petal"], batch_size=4, epochs=2, adapter_dropout=0.0, context="off", ib="off", log_every=1)
    more |= dict(save_every=1, eval_every=2, schedule="linear", augment="none")

    def settings(name):
        return fixture.settings(tmp_path, tmp_path / name, **more)

    assert petal.run(settings("one")) == 0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, "on_step_end", lambda self, args, state, *_, **__: _stop(state, 3))
        petal.run(settings("two"))
    training = tmp_path / "two" / "petal" / "seed-42" / "training"
    assert [path.name for path in training.glob("checkpoint-*")] == ["checkpoint-2"]

    (tmp_path / "two.yaml").write_text(yaml.safe_dump(dataclasses.asdict(settings("two")) | {"resume": True}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "petx.train.petal", "--preset", "paper-okvqa", "--config", str(tmp_path / "two.yaml"), "--resume"]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("going on from") == 1 and "the same to the digit" in done.stdout

    folders = [tmp_path / name / "petal" / "seed-42" for name in ("one", "two")]
    one, two = (json.loads((folder / "result.json").read_text()) for folder in folders)
    losses = [torch.tensor(record["curve"]["loss"]) for record in (one, two)]
    assert losses[0].shape == (4, 2)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)
    assert one["dev"] == two["dev"] and one["test"] == two["test"]
    wanted, found = (load_file(folder / "tuned" / "adapter_model.safetensors") for folder in folders)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
    assert not list(folders[1].glob("training/*")) and not list(tmp_path.rglob(".checkpoint-*"))


def _stop(state, step):
    if state.global_step == step:
        raise KeyboardInterrupt
