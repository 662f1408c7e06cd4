"""The table of docs/peft.md, run: every row has a check by its name, and every check a row with its verdicts."""

import copy
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from petx.tuners import load_adapter
from tests.fixtures import peft_calls, peft_calls_running  # they fill CHECKS in the page's order
from tests.fixtures.peft_method import CHECKS, close, each, refused, tensors_of, train

pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = Path(__file__).parents[2] / "docs/peft.md"
assert peft_calls and peft_calls_running


def rows_of_page():
    lines = [line.strip().strip("|").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return {cells[0].replace("`", "").strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_rows_and_checks_are_the_same():
    rows = rows_of_page()
    assert list(rows) == list(CHECKS)
    for name, (verdicts, _) in CHECKS.items():
        for cell, verdict in zip(rows[name], verdicts.values(), strict=True):
            assert re.sub(r"`", "", cell).startswith(verdict), name


# torch.compile traces the whole model, for seconds.
ROWS = [pytest.param(name, marks=pytest.mark.slow) if name.startswith("torch.compile") else name for name in CHECKS]


@pytest.mark.parametrize("name", ROWS)
@each
def test_row(method, name, tmp_path):
    CHECKS[name][1](method, tmp_path)


# ---- beside the table ----


@each
def test_training_after_a_merge_inside_inference_mode(method):
    model = method.affine()
    before = copy.deepcopy(model)
    with torch.inference_mode():
        model.merge_adapter()
    x = method.layers(model)[0]
    assert not x.get_base_layer().weight.is_inference()
    close(method.read(model), method.read(before))
    model.unmerge_adapter()
    assert train(model, method.inputs) == train(before, method.inputs)


@each
def test_deleting_an_inactive_adapter_keeps_an_inference_model(method, tmp_path):
    method.tuned().save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(method.host().requires_grad_(False), tmp_path)
    model.load_adapter(tmp_path, "b")
    assert not any(p.requires_grad for p in model.parameters())
    model.delete_adapter("b")
    assert not [name for name, p in model.named_parameters() if p.requires_grad]


@each
def test_second_merge_warns_and_changes_nothing(method):
    model = method.affine()
    model.merge_adapter("default")
    before = tensors_of(model)
    with pytest.warns(UserWarning, match="already merged, nothing to do"):
        model.merge_adapter("default")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@each
def test_pickle_is_not_read(method, tmp_path):
    method.tuned().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "adapter_model.bin")
    host = method.host()
    with refused(host, "is a pickle, which can run code and is not read"):
        load_adapter(host, tmp_path)
