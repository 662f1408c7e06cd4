"""``petx train vlpet``: the main job from end to end, shortened, and what it leaves; bad input."""

import json
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file

from petx import hosts
from petx.cli import main as petx
from petx.errors import UserError
from petx.train import tuned
from petx.train.vlpet import arguments

# ---- the main job, shortened ----


SLOW_FIXTURES = {"smoke"}


@pytest.fixture(scope="module")
def smoke(petx_cache, tmp_path_factory):
    """Output folder and printed text of ``petx train vlpet --preset smoke``."""
    out = tmp_path_factory.mktemp("smoke") / "out"
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *values, **_: printed.append(" ".join(map(str, values))))
        assert petx(["train", "vlpet", "--preset", "smoke", "--output_dir", str(out)]) == 0
    return out, "\n".join(printed)


def test_smoke_compares_the_arms(smoke):
    out, printed = smoke
    results = json.loads((out / "results.json").read_text())
    assert list(results["arms"]) == ["frozen", "projector", "vlpet", "lora", "full"]
    records = {arm: runs[0] for arm, runs in results["arms"].items()}
    trained = {arm: record["trainable"] for arm, record in records.items()}
    assert 0 == trained["frozen"] < trained["projector"] < trained["vlpet"] < trained["full"]
    assert trained["full"] == records["full"]["total"]
    assert trained["lora"] == pytest.approx(trained["vlpet"], rel=0.02)
    projectors = {record["projector"] for arm, record in records.items() if arm != "frozen"}
    assert len(projectors) == 1  # the same budget for the projector in every tuned arm
    assert results["baselines"]["blind"]["test"]["accuracy"] > 60
    for arm, record in records.items():
        assert 0 <= record["test"]["accuracy"] <= 100
        if arm != "frozen":
            assert len(record["curve"]["loss"]) == 13 and len(record["curve"]["dev"]) == 3
            assert record["curve"]["loss"][-1][1] < record["curve"]["loss"][0][1]
    assert "the same to the digit" in printed
    table = [line for line in (out / "results.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + 2 + 5 and len({line.count("|") for line in table}) == 1
    assert f"| VL-PET-large | {trained['vlpet']:,} |" in table[6]
    assert (
        f"{records['vlpet']['test']['accuracy']:.1f} |" in table[6]
        and f"{results['baselines']['blind']['test']['accuracy']:.1f} |" in table[3]
    )


def test_smoke_leaves_what_it_names(smoke):
    out, printed = smoke
    for name in ("results.md", "results.json", "loss.png", "accuracy.png", "vlpet/seed-0/tuned"):
        assert str(out / name) in printed and (out / name).exists()
    for name in ("loss.png", "accuracy.png"):
        with Image.open(out / name) as picture:
            assert picture.size[0] > 800 and len(picture.convert("RGB").getcolors(1 << 24)) > 20
    assert not list(out.rglob("checkpoint-*"))  # the state of finished trainings is removed


def test_the_adapter_is_a_plain_peft_adapter(smoke):
    from peft import PeftModel

    folder = smoke[0] / "vlpet" / "seed-0" / "tuned"
    model = PeftModel.from_pretrained(hosts.find("vl_bart").load(smoke[0] / "host"), folder)
    saved = load_file(folder / "adapter_model.safetensors")
    record = json.loads((folder.parent / "result.json").read_text())
    assert sum(tensor.numel() for tensor in saved.values()) == record["trainable"]  # nothing frozen is in it
    assert model.peft_config["default"].granularity == "large"


@pytest.mark.parametrize("arm", ["vlpet", "lora", "full", "projector"])
def test_eval_reproduces_the_score(smoke, petx_cache, arm, capsys, monkeypatch):
    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    folder = smoke[0] / arm / "seed-0" / "tuned"
    assert petx(["eval", "--adapter", str(folder)]) == 0
    wanted = json.loads((folder.parent / "result.json").read_text())["test"]["accuracy"]
    assert f"accuracy     {wanted:.4f}   (when trained {wanted:.4f})" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["dev", "test"])
def test_its_predictions_are_scored_without_a_model(smoke, petx_cache, split, capsys, monkeypatch):
    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    folder = smoke[0] / "vlpet" / "seed-0"
    assert petx(["score", str(folder / "predictions" / f"{split}-vqa.jsonl")]) == 0
    shown = capsys.readouterr().out
    for name, value in json.loads((folder / "result.json").read_text())[split].items():
        assert f"{name:<12} {value:.4f}" in shown


def test_eval_by_beams(smoke, petx_cache, capsys, monkeypatch):
    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    folder = smoke[0] / "full" / "seed-0" / "tuned"
    assert petx(["eval", "--adapter", str(folder), "--num_beams", "3", "--split", "dev"]) == 0
    score = float(capsys.readouterr().out.split("accuracy")[1].split()[0])
    assert score == pytest.approx(json.loads((folder.parent / "result.json").read_text())["dev"]["accuracy"], abs=5)


def test_predict_answers_and_draws(smoke, petx_cache, tmp_path, capsys, monkeypatch):
    from petx.data import packages

    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    image = packages.require("easy-vqa")["easy_vqa"] / "data" / "test" / "images" / "0.png"
    folder, drawn = smoke[0] / "full" / "seed-0" / "tuned", tmp_path / "answer.png"
    assert (
        petx(["predict", str(image), "is there a purple shape?", "--adapter", str(folder), "--output", str(drawn)]) == 0
    )
    said = capsys.readouterr().out
    assert "does not know 'purple'" in said and str(drawn) in said
    assert 0 < float(said.split("(probability ")[1].split(")")[0]) <= 1
    with Image.open(drawn) as picture:
        assert min(picture.size) > 300


def test_predict_draws_a_png_alone(tmp_path, capsys):
    command = ["predict", "nowhere.png", "is there a red shape?", "--adapter", "nowhere"]
    assert petx([*command, "--output", str(tmp_path / "answer.JPG")]) == 2
    assert "--output must end in .png, the format of what is drawn, got" in capsys.readouterr().err


def test_predict_names_a_missing_image(smoke, tmp_path, capsys):
    arguments = [
        "predict",
        str(tmp_path / "no.png"),
        "is it?",
        "--adapter",
        str(smoke[0] / "vlpet" / "seed-0" / "tuned"),
    ]
    assert petx(arguments) == 2
    assert "no such image" in capsys.readouterr().err


def test_an_adapter_without_its_host_is_named(smoke, tmp_path):
    alone = tmp_path / "a" / "b" / "tuned"
    shutil.copytree(smoke[0] / "vlpet" / "seed-0" / "tuned", alone)
    with pytest.raises(UserError, match="its host is not in"):
        tuned.load(alone)
    with pytest.raises(UserError, match="no folder written by petx train"):
        tuned.load(tmp_path)


def test_a_finished_run_is_not_written_over(smoke, petx_cache, capsys, monkeypatch):
    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    command = ["train", "vlpet", "--preset", "smoke", "--output_dir", str(smoke[0])]
    before = (smoke[0] / "results.json").read_bytes()
    assert petx(command) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert petx([*command, "--resume", "--rank", "12"]) == 2
    assert "was begun with rank=24, not 12" in capsys.readouterr().err
    assert (smoke[0] / "results.json").read_bytes() == before


# ---- settings and bad input ----


def test_settings_are_laid_over_one_another(tmp_path):
    (tmp_path / "mine.yaml").write_text("lr: 5e-4\nrank: 8\nbatch_sizes: {vqa: 7}\n")
    command = f"--preset paper-bart-image --config {tmp_path / 'mine.yaml'} --set rank=16 --set batch_sizes.gqa=9"
    settings = arguments.parse([*command.split(), "--heads", "2", "--with", "scratch,random-host", "--output-dir", "x"])
    assert (settings.lr, settings.rank, settings.heads, settings.epochs) == (5e-4, 16, 2, 20)
    assert settings.batch_sizes == {"vqa": 7, "gqa": 9}
    assert settings.all_arms == ["vlpet", "scratch", "random-host"] and settings.output_dir == "x"
    assert arguments.parse([]).output_dir == "petx-runs/easy-vqa"
    other = arguments.parse("--preset paper-bart-image --steps 7 --set splits.vqa.dev=[a]".split())
    assert (other.steps, other.epochs) == (7, None)
    assert other.splits["vqa"] == {"train": ["karpathy_train"], "dev": ["a"], "test": ["karpathy_test"]}


@pytest.mark.parametrize(
    "command, message",
    [
        ("--preset easy-vqaa", "unknown preset 'easy-vqaa'; there are: chat-vqa, easy-vqa, "),
        ("--level huge", "level must be one of large, middleX, middleY, small, none; got 'huge'"),
        ("--arms vlpet,lorra", "unknown arm 'lorra'"),
        ("--set ranks=3", "unknown setting 'ranks'; did you mean 'rank'"),
        ("--set rank", "--set wants KEY=VALUE, got 'rank'"),
        ("--rank many", "rank must be int, got 'many'"),
        ("--rank 2.5", "rank must be int, got 2.5"),
        ("--steps 0", "steps must be at least 1, got 0"),
        ("--epochs 2 --steps 3", "one of steps and epochs must be given, got steps=3, epochs=2"),
        ("--set splits={a", "--set splits={a: cannot read '{a'"),
        ("--config nowhere.yaml", "cannot read settings from nowhere.yaml"),
        ("--rank 10 --heads 4", "heads must divide rank"),
        ("--dev_images 4000", "dev_images must be between 1 and 3999, got 4000"),
        ("--image_size 70", "image_size must be a positive multiple of 32, got 70"),
        ("--preset paper-bart-image", "data_dir must be the folder of the data, got None"),
    ],
)
def test_bad_settings_are_named_before_any_work(petx_cache, tmp_path, capsys, monkeypatch, command, message):
    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    monkeypatch.chdir(tmp_path)
    assert petx(["train", "vlpet", *command.split()]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_data_names_the_command(tmp_path, capsys, monkeypatch):
    from petx.data import packages

    monkeypatch.setattr(packages, "locate", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert petx(["train", "vlpet"]) == 2
    assert "get it with: petx data get easy-vqa efficientnet-lite0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_unwritable_folder_is_named(petx_cache, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    (tmp_path / "file").write_text("")
    assert petx(["train", "vlpet", "--preset", "smoke", "--output_dir", str(tmp_path / "file" / "out")]) == 2
    assert "output_dir: cannot write in" in capsys.readouterr().err


def test_an_unknown_recipe_is_named(capsys):
    assert petx(["train", "vlpat"]) == 2
    assert "unknown recipe 'vlpat'; there are: vlpet" in capsys.readouterr().err
