"""``petx train petal --host``: BLIP-2 and LLaVA, tiny and of random weights, on image files; InstructBLIP is beside."""

import json
import shutil
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file

from petx import hosts
from petx.cli import main as petx
from petx.errors import UserError
from petx.train import petal, rehearsal, tuned
from petx.train.run import Run
from tests.fixtures import instruct_blip as fixture
from tests.fixtures.padding import assert_padding_changes_nothing

KINDS = ("blip2-t5", "blip2-opt", "llava")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """``{kind: folder}``, each with a host and the same data."""
    folder = tmp_path_factory.mktemp("hosts")
    for kind in KINDS:
        fixture.write_other_host(folder / kind / "host", kind)
        fixture.write_data(folder / kind / "data")
    return {kind: folder / kind for kind in KINDS}


def arms_of(kind):
    return (
        ["frozen", "petal", "lora", "full", "bitfit"]
        if kind == "llava"
        else ["petal", "lora", "adapter", "head", "full"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_host_of_the_tuner_is_tuned(places, tmp_path, kind, capsys):
    more = dict(arms=arms_of(kind), epochs=1, adapter_dropout=0.0, context="off")
    assert petal.run(fixture.settings(places[kind], tmp_path / "out", **more)) == 0
    assert "the same to the digit" in capsys.readouterr().out
    arms = json.loads((tmp_path / "out" / "results.json").read_text())["arms"]
    trained = {arm: records[0]["trainable"] for arm, records in arms.items()}
    assert list(trained) == sorted(
        trained, key=list(Run(petal.RECIPE, fixture.settings(places[kind], "x")).recipe.baselines).index
    )
    assert trained["lora"] == pytest.approx(trained["petal"], rel=0.2) and trained["petal"] < trained["full"]
    for arm in set(arms) - {"frozen"}:
        assert arms[arm][0]["curve"]["loss"][-1][1] < 20
    folder = tmp_path / "out" / "petal" / "seed-42" / "tuned"
    saved = load_file(folder / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == trained["petal"]
    image = str(places[kind] / "data" / "images" / "0.png")
    command = ["predict", image, "what color is it?", "--adapter", str(folder), "--output", str(tmp_path / "a.png")]
    assert petx(command) == 0 and (tmp_path / "a.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_host_learns_colours(places, tmp_path, kind):
    more = dict(arms=["petal"], epochs=12, schedule="linear", adapter_dropout=0.0, context="off", eval_every=1000)
    assert petal.run(fixture.settings(places[kind], tmp_path / "out", **more)) == 0
    curve = json.loads((tmp_path / "out" / "petal" / "seed-42" / "result.json").read_text())["curve"]["loss"]
    assert curve[-1][1] < curve[0][1] - 0.2, curve


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_the_sum_of_its_samples(places, kind):
    """Padding of instructions of different lengths changes nothing, left (to generate) or right (to train)."""
    run = Run(petal.RECIPE, fixture.settings(places[kind], "unused"))
    run.prepare()
    run.load_data()
    assert_padding_changes_nothing(run, run.host.load(run.settings.host, run.settings))


def test_the_images_tokens_go_where_the_instruction_says(places):
    settings = fixture.settings(places["llava"], "unused", instructions=["question: <image> {q}"])
    settings.clean_instructions = False
    run = Run(petal.RECIPE, settings)
    run.prepare()
    data = run.load_data()
    batch = hosts.bound(run.host.load(settings.host, settings), data.tokenizer).prompts([data.train[0][0]])
    image = data.tokenizer.convert_tokens_to_ids("<image>")
    found = (batch["input_ids"][0] == image).nonzero().flatten().tolist()
    assert found == list(range(2, 2 + 16))  # behind "question" and ":", one for each of the 4 x 4 patches


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("llava", dict(arms=["petal", "adapter"]), "arm adapter needs a Q-Former, and LLaVA has none"),
        ("llava", dict(ib="corrected"), "ib=corrected needs a Q-Former, and LLaVA has none"),
        ("blip2-t5", dict(instructions=["{q}", "describe"]), "BLIP-2 reads one instruction per image, got 2"),
        ("blip2-t5", dict(arms=["scratch"]), "arm scratch is for a small host, which is pretrained here"),
    ],
)
def test_what_a_host_cannot_do_is_said_before_any_work(places, tmp_path, kind, change, message):
    with pytest.raises(UserError, match=message):
        petal.run(fixture.settings(places[kind], tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_the_manifest_leads_back_to_the_host(places, tmp_path):
    assert petal.run(fixture.settings(places["llava"], tmp_path / "out", epochs=1, context="off", ib="off")) == 0
    loaded = tuned.load(tmp_path / "out" / "petal" / "seed-42" / "tuned")
    assert loaded.host is hosts.find("llava") and loaded.model.get_base_model().config.model_type == "llava"


@pytest.mark.slow
def test_petxs_own_kinds_are_known_in_a_fresh_process(tmp_path):
    import subprocess
    import sys

    from petx.models import VLBartConfig

    VLBartConfig().save_pretrained(tmp_path)
    code = f"from petx import hosts; print(hosts.of_checkpoint({str(tmp_path)!r}, 'vlpet').words)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "BART\n"


def test_a_host_without_an_image_token_is_refused_by_name(places, tmp_path):
    """As transformers wrote InstructBLIP's and BLIP-2's configurations before they had one."""
    shutil.copytree(places["blip2-opt"] / "host", tmp_path / "host")
    config = tmp_path / "host" / "config.json"
    kept = json.loads(config.read_text())
    del kept["image_token_index"]
    config.write_text(json.dumps(kept))
    settings = fixture.settings(places["blip2-opt"], tmp_path / "out", host=str(tmp_path / "host"))
    with pytest.raises(UserError, match="image_token_index of its blip-2 config.json is missing"):
        petal.run(settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dtype", "fits"), [("float32", False), ("bfloat16", True)])
def test_half_precision_needs_half_of_the_memory(places, tmp_path, monkeypatch, dtype, fits):
    model = torch.nn.Linear(100, 100, device="meta")
    monkeypatch.setattr(rehearsal, "memory", lambda: 12 * 10_100)
    settings = fixture.settings(places["llava"], tmp_path / "out", dtype=dtype)
    with nullcontext() if fits else pytest.raises(UserError, match="10,100 parameters would take 161,600 bytes"):
        rehearsal._fits(settings, "arm full", model)
