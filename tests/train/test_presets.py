"""Presets that extend others, and ``petx train METHOD --list``."""

import pytest
import yaml

from petx.cli import main as petx
from petx.errors import UserError
from petx.train import settings
from petx.train.petal import arguments as petal
from petx.train.vlpet import arguments as vlpet

KINDS = [vlpet, petal]


@pytest.mark.parametrize("recipe", KINDS)
def test_every_preset_is_whole(recipe):
    for name in settings.presets(recipe.Settings):
        assert recipe.checked(recipe.read_preset(name)).recipe in ("vlpet", "petal")


@pytest.mark.parametrize("recipe", KINDS)
def test_a_preset_says_only_what_differs(recipe):
    for path in (settings.PRESETS / recipe.Settings.recipe).glob("*.yaml"):
        values = yaml.safe_load(path.read_text())
        base = values.pop("extends", None)
        if base is not None:
            under = settings._extended(recipe.Settings, path.with_stem(base), ())
            assert not [name for name, value in values.items() if name in under and under[name] == value], path


def test_extending_goes_over_what_is_extended():
    gqa, okvqa = (petal.checked(petal.read_preset(name)) for name in ("paper-gqa", "paper-okvqa"))
    assert (gqa.tasks, gqa.batch_size, gqa.generation["max_new_tokens"]) == (["gqa"], 256, 10)
    assert (okvqa.tasks, okvqa.batch_size, okvqa.generation["max_new_tokens"]) == (["okvqa"], 128, 100)
    assert gqa.schedule == okvqa.schedule == "cosine-by-epoch" and gqa.weight_decay == 0.02
    assert petal.checked(petal.read_preset("paper-textcaps")).weight_decay == 0.05


def test_every_recipe_of_petal_reads_the_papers_data():
    """Its own task, whose splits it names; answers drawn as often as given, but for TextVQA's first."""
    for name in ("okvqa", "aokvqa", "gqa", "textvqa", "flickr30k", "textcaps"):
        found = petal.checked(petal.read_preset(f"paper-{name}"))
        assert found.tasks == list(found.splits) == list(found.max_target) == [name]
        assert (found.loss, found.eval_batch_size, found.targets) == (
            "token",
            32,
            "first" if name == "textvqa" else "sampled",
        )
        assert found.clean_captions == (name in ("flickr30k", "textcaps"))


def test_a_file_extends_a_preset_or_a_file(tmp_path):
    (tmp_path / "base.yaml").write_text("extends: paper-okvqa\nrank: 8\nepochs: 3\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nsteps: 5\n")
    got = petal.parse(["--config", str(tmp_path / "mine.yaml"), "--set", "lr=1e-4"])
    assert (got.rank, got.steps, got.epochs, got.batch_size, got.lr) == (8, 5, None, 128, 1e-4)


@pytest.mark.parametrize(
    "text, message",
    [
        ("extends: paper-okvqaa", "extends unknown preset 'paper-okvqaa'; there are: chat-vqa, easy-vqa, "),
        ("extends: mine.yaml", "extends itself"),
        ("extends: [a]", r"extends must be the name of a preset or a file, got \['a'\]"),
        ("extends: nowhere.yaml", "cannot read settings from .*nowhere.yaml"),
    ],
)
def test_a_wrong_extends_is_named(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        petal.parse(["--config", str(tmp_path / "mine.yaml")])


@pytest.mark.parametrize("method", ["vlpet", "petal"])
def test_list_has_a_line_for_everything(method, capsys):
    with pytest.raises(SystemExit, match="0"):
        petx(["train", method, "--list"])
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if line.startswith("  ")]
    assert all(len(line.split(None, 1)) == 2 for line in lines)  # a name and words
    names = [line.split()[0] for line in lines]
    for name in ("easy-vqa", "vqa", "caption", "exact", "frozen", "lora", "full", method, "smoke"):
        assert name in names
    assert set(names) >= ({"vl_t5", "nlvr", "tvqa", "projector"} if method == "vlpet" else {"llava", "no-gate"})
