"""The page on TRL's SFTTrainer (docs/hosts.md), run as it stands on a tiny Qwen2-VL with its processor."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from petx.tuners import load_adapter
from tests.fixtures import todays_vlms

PAGE = Path(__file__).parents[2] / "docs" / "hosts.md"
LORA = 'LoraConfig(r=4, target_modules=["q_proj", "v_proj"])'


def script():
    (found,) = [
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S) if "SFT" in block
    ]
    return found


def test_the_page_changes_three_lines():
    """Import, configuration, and its target modules: what a comment of the page gives in their place."""
    lines = [line for line in script().splitlines() if "LoraConfig" in line]
    assert len(lines) == 2 and LORA in lines[1]


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["petal", "lora"])
def test_the_page_runs(tmp_path, monkeypatch, method):
    for name in ("trl", "datasets", "torchvision"):
        pytest.importorskip(name)
    from tests.fixtures import chat_hosts

    chat_hosts.write_host(tmp_path / "host", "qwen2_vl")
    monkeypatch.chdir(tmp_path)
    text = script().replace("path/to/qwen2-vl", str(tmp_path / "host"))
    if method == "lora":
        text = re.sub(r"peft_config=.*", f"peft_config={LORA},", text)
        text = text.replace("from petx.tuners import PetalConfig", "from peft import LoraConfig")
    names = {}
    exec(compile(text, str(PAGE), "exec"), names)
    losses = [entry["train_loss"] for entry in names["trainer"].state.log_history if "train_loss" in entry]
    assert losses and all(torch.isfinite(torch.tensor(loss)) for loss in losses)
    saved = load_file(tmp_path / "sft" / "adapter_model.safetensors")
    assert all(("petal" in name) == (method == "petal") for name in saved)
    if method == "petal":
        model = load_adapter(todays_vlms.make("qwen2_vl"), tmp_path / "sft")
        batch = todays_vlms.batch("qwen2_vl")
        with torch.no_grad():
            tuned = model(**batch).logits
            with model.disable_adapter():
                assert not torch.equal(model(**batch).logits, tuned)
