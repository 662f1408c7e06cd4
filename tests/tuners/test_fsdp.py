"""FSDP2 over each layer of the host, in two processes on a CPU: the losses of one process, and an adapter that fits."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from petx.tuners import load_adapter
from tests.fixtures import sharded, todays_vlms

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]
SLOW_FIXTURES = {"two"}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """``(folder, found)`` of two processes."""
    folder = tmp_path_factory.mktemp("fsdp")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.fixtures.sharded", str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads((folder / "losses.json").read_text())


@pytest.mark.parametrize("name", [*sharded.RUNS, "vlpet-t5"])
def test_two_processes_train_as_one(two, tmp_path, name):
    folder, found = two
    alone = sharded.trained(name, tmp_path) if name in sharded.RUNS else sharded.trained_t5(tmp_path)
    assert len(alone) == sharded.STEPS
    assert found[name] == pytest.approx(alone, rel=1e-3)
    wanted, saved = (load_file(place / name / "adapter_model.safetensors") for place in (tmp_path, folder))
    assert wanted.keys() == saved.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(saved[key], tensor, rtol=1e-3, atol=1e-4)
    if name in sharded.RUNS:
        load_adapter(todays_vlms.make("gemma3"), folder / name)


@pytest.mark.parametrize("name", sharded.SPLIT)
def test_a_policy_that_splits_an_adapter_is_refused_with_what_to_do(two, name):
    _, found = two
    method = {"petal": "PETAL", "vlpet": "VL-PET"}[name]
    assert found[f"{name} split"].startswith(f"{method}: ")
    assert "is in shards where" in found[f"{name} split"]
    assert "Let it wrap whole layers of the host" in found[f"{name} split"]
