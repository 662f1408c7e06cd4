"""``petx train vlpet`` on data in VL-PET's formats: the paper's recipes, several processes, interrupted runs."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from petx import baselines, hosts
from petx.baselines import _sizes as sizes
from petx.errors import UserError
from petx.train import vlpet
from petx.train.vlpet import arguments
from tests.fixtures import image_text as fixture


@pytest.mark.slow
def test_four_tasks_in_turn(own, tmp_path, capsys):
    settings = fixture.settings(own, tmp_path / "out", arms=["vlpet", "lora"], seeds=2, epochs=1)
    assert vlpet.run(settings) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for runs in results["arms"].values():
        assert [run["seed"] for run in runs] == [42, 43]
        for run in runs:
            wanted = {"average", "vqa accuracy", "gqa accuracy", "nlvr accuracy", "caption cider"}
            assert wanted <= set(run["test"]) and run["steps"] == 3 + 4 + 3 + 4
    assert "±" in (tmp_path / "out" / "results.md").read_text()
    assert "the same to the digit" in capsys.readouterr().out
    tokens = json.loads((tmp_path / "out" / "host" / "config.json").read_text())["vocab_size"]
    assert tokens == json.loads((own / "bart" / "config.json").read_text())["vocab_size"] + 200


@pytest.mark.slow
def test_four_tasks_are_learnt(own, tmp_path):
    settings = fixture.settings(own, tmp_path, arms=["full"], epochs=30, lr_full=1e-2, dropout=0.0, num_beams=1)
    settings.eval_every = settings.save_every = 1000
    assert vlpet.run(settings) == 0
    scores = json.loads((tmp_path / "full" / "seed-42" / "result.json").read_text())["test"]
    # Colours are in the features alone, so this cannot be had without the images; NLVR2 is a coin of three faces.
    assert scores["vqa accuracy"] > 90 and scores["gqa accuracy"] > 90 and scores["caption rouge_l"] > 60, scores


@pytest.mark.slow
def test_two_processes_train_as_one(own, tmp_path):
    """Under torchrun each process takes its share of a batch; the gradients, and so the weights, are the same."""
    settings = fixture.settings(own, tmp_path / "one", epochs=1, num_beams=1, dropout=0.0, batch_sizes={}, batch_size=2)
    assert vlpet.run(settings) == 0
    values = dataclasses.asdict(settings) | {"output_dir": str(tmp_path / "two")}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(values))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "petx.train.vlpet"]
    command = [*launch, "--preset", "paper-bart-image", "--config", str(tmp_path / "two.yaml")]
    result = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("[1/1] VL-PET-large") == 1  # only one of them speaks
    one, two = (load_file(tmp_path / run / "vlpet/seed-42/tuned/adapter_model.safetensors") for run in ("one", "two"))
    curves = [json.loads((tmp_path / run / "vlpet/seed-42/result.json").read_text())["curve"] for run in ("one", "two")]
    losses = [torch.tensor(curve["loss"]) for curve in curves]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)
    host_weights = load_file(tmp_path / "one" / "host" / "model.safetensors")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    changed = [name for name in one if "visual_embedding" in name]
    assert changed and not torch.equal(one[changed[0]], host_weights[changed[0].removeprefix("base_model.model.")])


@pytest.mark.slow
def test_video_questions_and_captions(own, tmp_path):
    from tests.fixtures import video_text as video_text_fixture

    data_dir = video_text_fixture.write_data(tmp_path / "video")
    small = dict(data_dir=str(data_dir), host=str(own / "bart"), output_dir=str(tmp_path / "out"), visual_tokens=4)
    small |= dict(feature_width=video_text_fixture.WIDTH, tasks=["tvqa", "yc2c"], splits=video_text_fixture.SPLITS)
    small |= dict(rank=4, gate_rank=4, decoder_rank=4, heads=2, epochs=1, num_beams=1)
    settings = arguments.checked(arguments.read_preset("paper-bart-video") | small)
    assert (settings.lr, settings.batch_size) == (7e-4, 50)
    assert vlpet.run(settings) == 0
    scores = json.loads((tmp_path / "out" / "vlpet" / "seed-42" / "result.json").read_text())["test"]
    assert {"average", "tvqa accuracy", "yc2c cider"} <= set(scores)
    written = tmp_path / "out" / "vlpet" / "seed-42" / "predictions"
    numbers = json.loads((written / "test-tvqa.json").read_text())
    assert set(numbers) == {"0", "1", "2"} and all(-1 <= number < 5 for number in numbers.values())
    clips = [json.loads(line) for line in (written / "test-yc2c.jsonl").read_text().splitlines()]
    assert [clip["clip_id"] for clip in clips] == [0, 1, 2] and clips[0]["vid_name"] == "a"


def test_wrong_width_stops_before_any_work(own, tmp_path):
    settings = fixture.settings(own, tmp_path / "out", feature_width=2048)
    with pytest.raises(UserError, match=r"\.h5: features are \[9, 8\], of width 8; wanted \[V, 2048\]"):
        vlpet.run(settings)
    assert not (tmp_path / "out").exists()


def test_paper_presets_hold_the_papers_numbers():
    bart = arguments.checked(arguments.read_preset("paper-bart-image"))
    t5 = arguments.checked(arguments.read_preset("paper-t5-image"))
    assert (bart.lr, t5.lr, bart.lr_full) == (1e-3, 3e-4, 1e-4)
    assert bart.batch_sizes == {"vqa": 500, "gqa": 833, "nlvr": 166, "caption": 416}
    assert t5.batch_sizes == {"vqa": 300, "gqa": 500, "nlvr": 100, "caption": 250}
    assert (bart.rank, bart.scale, t5.rank, t5.gate_rank, t5.decoder_rank, t5.scale) == (96, 1.0, 192, 192, 96, 0.3)
    for settings in (bart, t5):
        assert (settings.epochs, settings.warmup, settings.clip, settings.weight_decay) == (20, 0.1, 5.0, 0.01)
        assert (settings.adam_epsilon, settings.decay, settings.dropout, settings.visual_tokens) == (
            1e-6,
            "paper",
            0.1,
            36,
        )


@pytest.mark.parametrize("arm, wanted", [("vlpet", 6_052_416), ("full", None)])
def test_paper_preset_counts_as_the_paper(arm, wanted):
    """BART-base's shapes without its weights; 6,052,416 of 145,606,464 is the paper's 4.16 %."""
    from petx.models import VLBartConfig, VLBartForConditionalGeneration

    config = VLBartConfig(vocab_size=50265 + 200, d_model=768, encoder_layers=6, decoder_layers=6)
    config.encoder_attention_heads = config.decoder_attention_heads = 12
    config.encoder_ffn_dim = config.decoder_ffn_dim = 3072
    with torch.device("meta"):
        model = VLBartForConditionalGeneration(config)
        settings, host = arguments.checked(arguments.read_preset("paper-bart-image")), hosts.find("vl_bart")
        counts = sizes.counts(host, baselines.find(arm, "vlpet").build(host, model, settings))
    assert counts["trainable"] == (wanted or counts["total"])
    assert counts["total"] == (145_606_464 if arm == "vlpet" else 139_420_416 + 200 * 768 + counts["projector"])
