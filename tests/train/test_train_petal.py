"""``petx train petal``: the main job from end to end, shortened, and what it leaves; bad settings; schedules."""

import json
import math

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file

from petx import baselines, hosts
from petx.baselines import _sizes as sizes
from petx.baselines.petal import petal_config
from petx.cli import main as petx
from petx.errors import UserError
from petx.hosts.instruct_blip import HOST, LEAST_STD
from petx.tasks.easy_vqa import LESSONS
from petx.train import stages, tuned
from petx.train.petal import arguments
from petx.train.petal.recipe import RECIPE
from petx.train.petal.trainer import learning_rate

ABLATIONS = ["no-experts", "no-gate", "no-ib", "no-threshold", "diagonal-core"]
SHORT = (
    "--preset smoke --train_images 60 --dev_images 12 --test_images 12 --rank 4 --expert_rank 2 --experts 2 --steps 4"
)
SHORT += " --batch_size 16 --eval_every 2 --save_every 2 --log_every 1 --ib variational"
TINY = f"{SHORT} --width 32 --ffn 32 --layers 2 --lm_layers 1 --queries 2 --host_steps 8"  # with a host pretrained here


SLOW_FIXTURES = {"tiny"}


@pytest.fixture(scope="module")
def tiny(petx_cache, tmp_path_factory):
    """Output folder and printed text of a run of every arm, a few steps each."""
    out = tmp_path_factory.mktemp("petal") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETX_CACHE", str(petx_cache))
        printed = []
        patch.setattr("builtins.print", lambda *values, **_: printed.append(" ".join(map(str, values))))
        command = [*TINY.split(), "--with", "ablations,everything,scratch,random-host", "--output_dir", str(out)]
        assert petx(["train", "petal", *command]) == 0
    return out, "\n".join(printed)


def test_every_arm_trains_what_it_says(tiny):
    out, printed = tiny
    results = json.loads((out / "results.json").read_text())
    records = {arm: runs[0] for arm, runs in results["arms"].items()}
    default = ["frozen", "petal", "lora", "adapter", "head", "full"]
    assert list(records)[:6] == default and list(records)[6:] == [*ABLATIONS, "everything", "scratch", "random-host"]
    trained = {arm: record["trainable"] for arm, record in records.items()}
    petal = trained["petal"]
    assert trained["frozen"] == 0 < petal < trained["full"] < trained["everything"] == trained["scratch"]
    assert trained["lora"] == pytest.approx(petal, rel=0.2) and trained["adapter"] == pytest.approx(petal, rel=0.2)
    assert trained["random-host"] == trained["no-ib"] == petal  # the estimators are counted apart
    assert records["petal"]["estimators"] > 0 == records["no-ib"]["estimators"]
    assert trained["no-threshold"] == petal - 2  # one threshold for text, one for the image
    assert trained["diagonal-core"] == petal - 2 * (4**3 - 4)
    assert trained["no-gate"] == petal - 2 * 32 - 2  # the gating network: weight [experts, width] and bias
    assert trained["no-experts"] == trained["no-gate"] - 2 * (2 * 32 * 2 + 2 + 32)
    for arm, record in records.items():
        if arm != "frozen":
            assert [step for step, _ in record["curve"]["dev"]] == [2, 4]
            assert all(math.isfinite(loss) for _, loss in record["curve"]["loss"])
    assert "the same to the digit" in printed and str(out / "results.md") in printed
    table = [line for line in (out / "results.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + 2 + len(records) and len({line.count("|") for line in table}) == 1
    with Image.open(out / "accuracy.png") as picture:
        assert picture.size[0] > 800
    assert not list(out.rglob("checkpoint-*"))


def test_the_adapter_is_a_plain_peft_adapter(tiny):
    folder = tiny[0] / "petal" / "seed-0" / "tuned"
    settings = tuned.load(folder).settings
    model = PeftModel.from_pretrained(HOST.load(tiny[0] / "host", settings), folder)
    saved = load_file(folder / "adapter_model.safetensors")
    record = json.loads((folder.parent / "result.json").read_text())
    assert sum(tensor.numel() for tensor in saved.values()) == record["trainable"]  # neither frozen nor estimators
    assert model.peft_config["default"].rank == 4


def test_what_is_frozen_stays(tiny):
    """The host lies as it was pretrained, and its standardisation is that of the training features."""
    loaded = tuned.load(tiny[0] / "petal" / "seed-0" / "tuned")
    before = HOST.load(tiny[0] / "host", loaded.settings)
    assert before.query_tokens.any() and (before.vision_model.std >= LEAST_STD).all()
    assert not torch.equal(before.vision_model.std, torch.ones_like(before.vision_model.std))
    record = json.loads((tiny[0] / "petal" / "seed-0" / "result.json").read_text())
    assert sum(p.numel() for p in before.parameters()) == record["total"] - record["trainable"]


@pytest.mark.parametrize("arm", ["petal", "no-experts", "lora", "adapter", "head", "full", "random-host"])
def test_eval_reproduces_the_score(tiny, petx_cache, arm, capsys, monkeypatch):
    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    folder = tiny[0] / arm / "seed-0" / "tuned"
    assert petx(["eval", "--adapter", str(folder)]) == 0
    wanted = json.loads((folder.parent / "result.json").read_text())["test"]["accuracy"]
    assert f"accuracy     {wanted:.4f}   (when trained {wanted:.4f})" in capsys.readouterr().out


def test_predict_answers_and_draws(tiny, petx_cache, tmp_path, capsys, monkeypatch):
    from petx.data import packages

    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    image = packages.require("easy-vqa")["easy_vqa"] / "data" / "test" / "images" / "0.png"
    adapter, drawn = str(tiny[0] / "petal" / "seed-0" / "tuned"), tmp_path / "answer.png"
    command = ["predict", str(image), "is there a purple shape?", "--adapter", adapter, "--num_beams", "2"]
    assert petx([*command, "--output", str(drawn)]) == 0
    said = capsys.readouterr().out
    assert "does not know 'purple'" in said and drawn.is_file()
    assert 0 < float(said.split("(probability ")[1].split(")")[0]) <= 1
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    assert petx(["predict", str(tmp_path / "broken.png"), "is it?", "--adapter", adapter]) == 2
    assert "broken.png as an image" in capsys.readouterr().err


def test_a_finished_run_is_added_to_and_not_written_over(tiny, petx_cache, capsys, monkeypatch):
    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    out, command = tiny[0], ["train", "petal", *TINY.split(), "--output_dir", str(tiny[0])]
    before = (out / "petal" / "seed-0" / "result.json").stat().st_mtime_ns
    assert petx(command) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert petx([*command, "--resume", "--rank", "8"]) == 2
    assert "was begun with rank=4, not 8" in capsys.readouterr().err
    assert petx([*command, "--resume", "--arms", "petal", "--seeds", "2"]) == 0
    runs = json.loads((out / "results.json").read_text())["arms"]["petal"]
    assert [run["seed"] for run in runs] == [0, 1] and "±" in (out / "results.md").read_text()
    assert (out / "petal" / "seed-0" / "result.json").stat().st_mtime_ns == before


def test_a_host_of_an_earlier_run_is_used_where_it_lies(tiny, petx_cache, tmp_path, monkeypatch):
    """With a decoder-only language model, too: see the next test's host."""
    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    command = [
        *SHORT.split(),
        "--arms",
        "petal",
        "--host",
        str(tiny[0] / "host"),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert petx(["train", "petal", *command]) == 0
    assert not (tmp_path / "out" / "host").exists()
    manifest = json.loads((tmp_path / "out" / "petal" / "seed-0" / "tuned" / "petx.json").read_text())
    assert (tmp_path / "out" / "petal" / "seed-0" / "tuned" / manifest["host"]).resolve() == (
        tiny[0] / "host"
    ).resolve()


@pytest.mark.slow
@pytest.mark.parametrize("language_model", ["llama", "smollm2"])
def test_decoder_only_language_models(petx_cache, tmp_path, monkeypatch, language_model):
    """``smollm2`` with a stand-in of the same architecture in place of the package's weights; ``llama`` with lessons
    of choice."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from petx.data import smollm2
    from petx.data.tokenizers import word_tokenizer

    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    if language_model == "smollm2":
        stand_in = tmp_path / "llama"
        word_tokenizer(["is there a red shape yes no short answer question describe the image"], 0).save_pretrained(
            stand_in
        )
        sizes = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        vocabulary = len(AutoTokenizer.from_pretrained(stand_in))
        LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes)).save_pretrained(stand_in)
        monkeypatch.setattr(smollm2, "_folder", lambda: stand_in)
        monkeypatch.setattr(smollm2, "check", lambda: None)
    out = tmp_path / "out"
    own = TINY.replace(" --lm_layers 1", "") if language_model == "smollm2" else TINY  # it has layers of its own
    command = [*own.split(), "--language_model", language_model, "--arms", "petal", "--output_dir", str(out)]
    command += ["--lessons", "what,match"] if language_model == "llama" else []
    assert petx(["train", "petal", *command]) == 0
    model = HOST.load(out / "host", tuned.load(out / "petal" / "seed-0" / "tuned").settings)
    assert model.config.use_decoder_only_language_model
    if language_model == "llama":
        vocabulary, notes = HOST.tokenizers(out / "host").qformer.get_vocab(), (out / "results.md").read_text()
        assert "match" in vocabulary and "say" not in vocabulary
        assert "minutes ago on 'what' questions and matching captions." in notes
    if language_model == "smollm2":  # frozen while the Q-Former was pretrained; one row more, for <image>
        weights, kept = model.language_model.model, LlamaForCausalLM.from_pretrained(stand_in).model
        assert torch.equal(weights.layers[0].mlp.up_proj.weight, kept.layers[0].mlp.up_proj.weight)
        assert torch.equal(weights.embed_tokens.weight[:-1], kept.embed_tokens.weight)


def test_captions_are_matched_in_the_qformer():
    """It reads the caption; the language model reads that there is one, and has only the soft tokens to go by."""
    settings = arguments.checked(arguments.read_preset("smoke") | {"lessons": ["match"]})
    tokenizers = HOST.small_tokenizer(["a red circle", "yes no"], settings, visual_tokens=0)
    task = HOST.dataset(LESSONS["match"], [], None, tokenizers, settings, "pretraining")
    item = task.item(torch.zeros(1, 4), "a red circle", "yes")
    (read,) = item["qformer_input_ids"]
    assert tokenizers.qformer.decode(read) == "match a red circle </s>"
    assert tokenizers.text.decode(item["input_ids"]) == "match </s>"
    assert tokenizers.text.decode(item["labels"]) == "yes </s>"


@pytest.mark.parametrize(
    "preset, changes, wanted",
    [
        ("easy-vqa", {}, ("caption", "what", "match")),
        ("easy-vqa", {"language_model": "t5"}, ("caption", "what", "words")),
        ("easy-vqa", {"lessons": ["what"]}, ("what",)),
        ("openmoji", {"language_model": "llama"}, ("caption", "what", "words")),  # of which it has two
    ],
)
def test_lessons_are_chosen_by_the_language_model(preset, changes, wanted):
    """And the notes beside the table say which they were, and what matching has told before."""
    settings = arguments.checked(arguments.read_preset(preset) | changes)
    assert HOST.lessons_of(settings) == wanted
    assert ("has the answers yes and no" in RECIPE.notes(settings)) == ("match" in wanted)


def main_job(**changes):
    """Settings of the main job, and a small host of random weights as it has it."""
    settings = arguments.checked(arguments.read_preset("easy-vqa") | changes)
    run_data = type("RunData", (), {})()
    tokenizer = type("Tokenizer", (list,), {"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0})(range(50))
    tokenizer.convert_tokens_to_ids = lambda token: 49
    run_data.tokenizer = type("Tokenizers", (), {"text": tokenizer, "qformer": tokenizer})()
    run_data.feature_stats = None
    return settings, lambda: HOST.small(settings, run_data)


@pytest.mark.parametrize("changes", [{}, {"rank": 24, "image_rank": None}, {"lora_image_rank": 2}])
def test_lora_and_adapter_are_as_large_as_petal_on_the_main_job(changes):
    settings, host = main_job(**changes)
    counts = {}
    for arm in ("petal", "lora", "adapter", "full"):
        model = baselines.find(arm, "petal").build(HOST, host(), settings)
        counts[arm] = sizes.counts(HOST, model)["trainable"]
    assert counts["lora"] == pytest.approx(counts["petal"], rel=0.1)
    assert counts["adapter"] == pytest.approx(counts["petal"], rel=0.1)
    assert counts["petal"] < 0.15 * counts["full"]
    if not changes:
        assert (counts["petal"], counts["lora"]) == (42_112, 40_960)


def test_the_presets_rank_for_images_is_for_a_qformer_alone():
    settings = arguments.checked(arguments.read_preset("easy-vqa"))
    ranks = {name: petal_config(host, settings).image_rank for name, host in hosts.of_method("petal").items()}
    assert {name for name, rank in ranks.items() if rank} == {"blip2", "blip2_retrieval", "instruct_blip"}
    assert set(ranks.values()) == {None, 8}


def test_lora_has_a_rank_of_its_own_where_it_reads_the_image():
    """At the scale of the other places, whose rank is what makes the whole as large as PETAL."""
    settings, host = main_job(lora_image_rank=2, lora_alpha=3.0, rank=8)
    lora = baselines.find("lora", "petal")
    model = lora.build(HOST, host(), settings)
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    of_images = {name for name in layers if "crossattention" in name and not name.endswith("query")}
    rank = lora.counts(model)["rank_used"]
    assert len(of_images) == 4 and rank > 2
    for name, layer in layers.items():
        assert layer.r["default"] == (2 if name in of_images else rank), name
        assert layer.scaling["default"] == pytest.approx(3.0 / rank)
    assert lora.titled(HOST, settings, {"rank_used": rank}) == f"LoRA (rank {rank}, 2 for images)"


# ---- settings and bad input ----


@pytest.mark.parametrize(
    "command, message",
    [
        ("--preset easy-vqaa", "unknown preset 'easy-vqaa'; there are: chat-vqa, easy-vqa, "),
        ("--arms petal,lorra", "unknown arm 'lorra'"),
        ("--with diagonal-core", "arm diagonal-core would be PETAL itself: core is 'diagonal' already"),
        ("--with no-ib", "arm no-ib would be PETAL itself: ib is 'off' already"),
        ("--set ib=of", "ib must be one of off, authors, corrected, variational; got 'of'"),
        ("--rank 0", "rank must be at least 1, got 0"),
        ("--experts 2 --expert_top_k 3", "expert_top_k must be between 1 and experts=2, got 3"),
        ("--threshold medium", "threshold must be one of none, soft, hard, sigmoid; got 'medium'"),
        ("--adapter_dropout 1", "adapter_dropout must be in [0, 1), got 1.0"),
        ("--lessons caption,spelling", "lessons[1] must be one of caption, what, words, match; got 'spelling'"),
        ("--lessons match,what,match", "lessons must name each lesson once, got match, what, match"),
        ("--lessons what --host nowhere", "lessons are what the small host of easy-vqa is pretrained on"),
        ("--instructions []", "instructions must name at least one template"),
        ("--set generation.beams=3", "generation: unknown 'beams'; there are: num_beams, "),
        ("--width 30", "attention_heads must divide width, got 4 and 30"),
        ("--augment randaugment", "augment is for data of one's own, and data is easy-vqa; choose one with --data"),
        ("--loss token", "loss is for data of one's own"),
        ("--set metrics.vqa=gqa", "metrics is for data of one's own"),
        ("--set splits.vqa={train:[train]}", "splits is for data of one's own"),
        ("--dtype bfloat16", "dtype is that of a given host, and the small one is float32; got bfloat16"),
        ("--rerank 3", "rerank=3: nothing reads this without a task of retrieval"),
        ("--dev_images 4000", "dev_images must be between 1 and 3999, got 4000"),
        ("--set instructions=['{question}?']", "{q} is the only field there is"),
        ("--host nowhere", "host: cannot load 'nowhere'"),
        ("--preset paper-okvqa", "data_dir must be the folder of the data, got None"),
    ],
)
def test_bad_settings_are_named_before_any_work(petx_cache, tmp_path, capsys, monkeypatch, command, message):
    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    assert petx(["train", "petal", *command.split()]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_bare_off_in_yaml_is_text(tmp_path):
    (tmp_path / "mine.yaml").write_text("ib: off\ncontext: off\n")
    settings = arguments.parse(["--config", str(tmp_path / "mine.yaml"), "--set", "ib=off"])
    assert (settings.ib, settings.context) == ("off", "off")
    assert settings.output_dir == "petx-runs/petal-easy-vqa"


def test_ablations_are_of_the_parts_there_are():
    def arms_of(*flags):
        return arguments.parse(["--arms", "petal", "--with", "ablations", *flags]).all_arms[1:]

    assert arms_of() == ["no-experts", "no-gate", "no-threshold", "full-core"]
    more = arms_of("--ib", "corrected", "--core", "full", "--expert_gate", "uniform")
    assert more == ["no-experts", "no-ib", "no-threshold", "diagonal-core"]


def test_missing_smollm2_names_the_command(petx_cache, tmp_path, capsys, monkeypatch):
    from petx.data import packages

    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    monkeypatch.chdir(tmp_path)
    found = packages.locate
    monkeypatch.setattr(packages, "locate", lambda name: None if name == "smollm2" else found(name))
    assert petx(["train", "petal", "--preset", "smollm2"]) == 2
    assert "get it with: petx data get smollm2" in capsys.readouterr().err


# ---- schedules ----


def test_schedule_of_the_paper():
    """The first epoch warms up by step, or stays; every later one has one rate."""
    options = dict(steps=50, schedule="cosine-by-epoch", low=1e-8, end=1e-6, an_epoch=10)
    rates = [learning_rate(step, 2e-5, warm=0, **options) for step in range(50)]
    assert rates[:10] == [2e-5] * 10
    for epoch in range(1, 5):
        wanted = 1e-6 + (2e-5 - 1e-6) * 0.5 * (1 + math.cos(math.pi * epoch / 5))
        assert rates[10 * epoch : 10 * epoch + 10] == pytest.approx([wanted] * 10)
    warm = [learning_rate(step, 1e-5, warm=4, **options) for step in range(10)]
    assert warm[0] == 1e-8 and warm[2] == pytest.approx((1e-5 + 1e-8) / 2) and warm[4:] == [1e-5] * 6


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedule_by_step(schedule):
    rates = [learning_rate(step, 1.0, 20, schedule, warm=4, low=0.0, end=0.1, an_epoch=3) for step in range(21)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0]) and rates[4] == 1.0
    assert rates[12] == pytest.approx(0.55) and rates[20] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[4:], rates[5:], strict=False))


def test_an_unknown_recipe_field_is_no_vlpet_setting():
    with pytest.raises(UserError, match="unknown setting 'level'"):
        arguments.checked({"level": "large", "steps": 1})
    assert stages.SETTINGS == "settings.json"
