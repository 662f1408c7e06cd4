"""A setting that a user wrote and that has no effect in a run is refused; what a preset says is not the user's."""

import dataclasses
import json

import pytest
import yaml

from petx import baselines, hosts, studies
from petx.errors import UserError
from petx.studies.running import Job
from petx.train import recipes, unread
from petx.train.petal import arguments as petal
from petx.train.vlpet import arguments as vlpet
from tests.train.test_studies import write

RECIPES = {"vlpet": vlpet, "petal": petal}


def found(recipe, *argv, host=None):
    given = RECIPES[recipe].parse(list(argv))
    kind = hosts.find(host or ("vl_bart" if given.host else recipes.find(recipe).small_host))
    return unread.reasons(given, sorted(given.given), arms=given.all_arms, host=kind)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_arms_hosts_and_data_declare_are_settings(recipe):
    kind = RECIPES[recipe].Settings
    names = {field.name for field in dataclasses.fields(kind)}
    elsewhere = {field.name for other in RECIPES.values() for field in dataclasses.fields(other.Settings)}
    for arm in baselines.of_method(recipe).values():
        assert arm.owns() <= (elsewhere if len(arm.methods) > 1 else names), arm.name
    for host in hosts.of_method(recipe).values():
        assert set(host.small_settings) | set(host.given_settings) <= elsewhere, host.__name__


@pytest.mark.parametrize(
    "recipe, argv, wanted",
    [
        ("vlpet", ["--arms=vlpet", "--lr_lora=1e-3", "--lora_rank=4"], {"lr_lora", "lora_rank"}),
        ("vlpet", ["--arms=vlpet,lora", "--lr_lora=1e-3", "--lora_rank=4", "--rank=8"], set()),
        ("vlpet", ["--arms=lora", "--lr=1e-3", "--rank=8"], {"lr"}),  # which is as large as VL-PET of that rank
        ("vlpet", ["--arms=lora", "--lora_rank=4", "--set", "rank=8"], {"rank"}),
        ("vlpet", ["--arms=lora", "--lora_image_rank=4"], {"lora_image_rank"}),  # no Q-Former
        ("petal", ["--arms=lora", "--lora_image_rank=4", "--image_rank=4"], set()),
        ("petal", ["--arms=lora", "--lora_rank=4", "--image_rank=4"], {"image_rank"}),
        ("vlpet", ["--arms=frozen", "--with=scratch", "--lr_full=1e-3", "--level=small"], {"level"}),
        ("vlpet", ["--arms=random-host", "--lr=1e-3", "--level=small"], set()),
        ("vlpet", ["--level=small", "--gate_rank=8"], {"gate_rank"}),
        ("vlpet", ["--decoder_places=[]", "--decoder_rank=8", "--rank=8"], {"decoder_rank"}),
        ("vlpet", ["--encoder_places=[]", "--decoder_rank=8", "--rank=8"], {"rank"}),
        ("vlpet", ["--width=64", "--visual_tokens=9", "--image_size=32"], {"visual_tokens"}),
        ("vlpet", ["--host=OWN", "--width=64", "--host_steps=9", "--dropout=0.1"], {"width", "host_steps"}),
        ("petal", ["--arms=petal", "--adapter_rank=8"], {"adapter_rank"}),
        ("petal", ["--arms=scaled-lora", "--lora_rank=8", "--lora_alpha=8"], {"lora_alpha"}),
        ("petal", ["--experts=0", "--expert_rank=8", "--ib_weight=1"], {"expert_rank", "ib_weight"}),
        ("petal", ["--arms=aurora", "--expert_rank=8", "--rank=8"], {"expert_rank"}),
        ("petal", ["--arms=petal", "--full_vision_norm=true"], {"full_vision_norm"}),
        ("petal", ["--arms=lora", "--adapter_dropout=0.1", "--lora_rank=4"], set()),
        ("petal", ["--queries=8", "--max_target={vqa: 3}"], {"max_target"}),
    ],
)
def test_what_has_no_effect_is_found(own, recipe, argv, wanted):
    assert set(found(recipe, *(word.replace("OWN", str(own / "bart")) for word in argv))) == wanted


def test_the_words_name_setting_value_and_whose_it_is(own):
    (words,) = found("vlpet", "--arms=vlpet", "--lora_alpha=4").values()
    assert words == "lora_alpha=4.0 has no effect with these settings and arms=vlpet: it is for lora; leave it out"
    (words,) = found("vlpet", f"--host={own / 'bart'}", "--ffn=8").values()
    assert words == f"ffn=8 has no effect on host={own / 'bart'}; leave it out"


def test_presets_and_records_of_runs_choose_nothing_and_a_file_of_ones_own_does(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("extends: paper-bart-image\narms: [vlpet]\n")
    assert vlpet.parse(["--config", str(file)]).given == {"arms"}
    (tmp_path / "more.yaml").write_text("extends: own.yaml\nlr_lora: 1e-4\n")
    assert vlpet.parse(["--config", str(tmp_path / "more.yaml"), "--seed=3"]).given == {"arms", "lr_lora", "seed"}
    record = tmp_path / "settings.json"
    record.write_text(json.dumps(dataclasses.asdict(vlpet.parse(["--arms=vlpet", "--preset=paper-t5-image"]))))
    assert vlpet.parse(["--config", str(record), "--seed=3"]).given == {"seed"}
    older = json.loads(record.read_text())
    del older["output_dir"], older["lr_hyperformer"]  # as an older version wrote it, or a copy without a line
    for name, text in (("older.json", json.dumps(older)), ("older.yaml", yaml.safe_dump(older))):
        (tmp_path / name).write_text(text)
        assert not vlpet.parse(["--config", str(tmp_path / name)]).given


def test_a_decoder_only_model_has_no_rank_of_a_decoder(tmp_path):
    from tests.fixtures import chat_hosts

    chat_hosts.write_host(tmp_path, "gemma3")
    named = f"--host={tmp_path}"
    kind = "image_text_to_text"
    assert set(found("vlpet", named, "--decoder_rank=8", "--rank=8", host=kind)) == {"decoder_rank"}
    assert set(found("vlpet", named, "--arms=lora", "--decoder_rank=8", host=kind)) == {"decoder_rank"}
    assert set(found("vlpet", named, "--feature_width=8", "--task_prompts=false", host=kind)) == {"feature_width"}

    for arms in ("petal", "lora"):
        assert set(found("petal", named, f"--arms={arms}", "--image_rank=8", "--rank=8", host=kind)) == {"image_rank"}


def test_a_study_may_set_for_all_what_some_cells_read(tmp_path):
    cells = {"ours": {"arms": ["vlpet"]}, "lora": {"arms": ["lora"]}}
    study = studies.read(write(tmp_path, axes=None, cells=cells, settings={"lora_rank": 8}))
    assert [cell.settings.lora_rank for cell in study.cells] == [None, 8]
    assert ["lora_rank" in cell.changes for cell in study.cells] == [False, True]
    # A study that was begun before what is not read was left out goes on.
    job = Job("ours", tmp_path / "cell", study.cells[0].settings)
    job.folder.mkdir()
    before = dataclasses.asdict(job.settings)
    (job.folder / "settings.json").write_text(json.dumps(before | {"lora_rank": 8}))
    job.check()
    (job.folder / "settings.json").write_text(json.dumps(before | {"rank": 8 + before["rank"]}))
    with pytest.raises(UserError, match="was run with rank="):
        job.check()
    with pytest.raises(UserError, match="mine.yaml: lr_bitfit=0.5 has no effect .* it is for bitfit"):
        studies.read(write(tmp_path, axes=None, cells=cells, settings={"lr_bitfit": 0.5}))
