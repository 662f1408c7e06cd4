"""Every setting has a kind and a range, checked once and by name, before any work."""

import dataclasses
import math
import os

import hypothesis
import pytest
import yaml
from hypothesis import Phase, given
from hypothesis import strategies as st

from petx import tasks
from petx.errors import UserError
from petx.options import checked_value
from petx.train import settings
from petx.train.petal import arguments as petal
from petx.train.vlpet import arguments as vlpet

RECIPES = {"vlpet": vlpet, "petal": petal}
NUMBERS = [
    (recipe, field)
    for recipe, arguments in RECIPES.items()
    for field in dataclasses.fields(arguments.Settings)
    if settings._hint(arguments.Settings, field.name) in (int, float, int | None, float | None)
]


def parsed(recipe, **given):
    return RECIPES[recipe].parse([f"--{name}={value}" for name, value in given.items()])


@pytest.mark.parametrize("recipe, field", NUMBERS, ids=[f"{recipe}-{field.name}" for recipe, field in NUMBERS])
def test_a_number_is_finite_within_its_range_and_told_by_name(recipe, field):
    for value in ("nan", ".nan", ".inf", "-.inf", "x", "[1]", "true", "{a: 1}"):
        with pytest.raises(UserError, match=f"{field.name} must be "):
            parsed(recipe, **{field.name: value})
    ends = [field.metadata.get(bound) for bound in ("least", "above")]
    if ends != [None, None]:  # a count or a rate: nothing below its least
        with pytest.raises(UserError, match=f"{field.name} must be .*, got -1"):
            parsed(recipe, **{field.name: "-1"})


VALUES = st.one_of(
    st.sampled_from([None, "", "odd", "~", b"x", [], [None], {}, {"vqa": None}, {1: 2}, True, False, object(), 1j]),
    st.sampled_from(["vqa", ["vqa"], {"vqa": {"train": 3}}, {"vqa": ["{q} {x}"]}, "\0", "2024", [[]], {"a": {"b": 1}}]),
    st.integers(-3, 40),
    st.floats(allow_nan=True, allow_infinity=True),
    st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(-1, 1), max_size=2),
)
FIELDS = [(recipe, field) for recipe, arguments in RECIPES.items() for field in dataclasses.fields(arguments.Settings)]


@pytest.mark.parametrize("recipe, field", FIELDS, ids=[f"{recipe}-{field.name}" for recipe, field in FIELDS])
def test_any_value_of_a_setting_is_taken_or_told_by_name(recipe, field):
    kind = RECIPES[recipe].Settings

    @hypothesis.settings(max_examples=20, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(VALUES)
    def check(value):
        try:
            made = settings.checked(kind, {"steps": 1, field.name: value})
        except UserError as error:
            assert field.metadata.get("flag", field.name) in str(error), f"{value!r}: {error}"
            return
        kept = getattr(made, field.name)
        as_number = isinstance(kept, int | float) and isinstance(value, str | float) and kept == float(value)
        as_path = isinstance(value, str) and kept == os.path.expanduser(value)
        assert kept == value or as_number or as_path or (value is False and kept == "off"), f"{value!r}: {kept!r}"

    check()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_count_and_rate_has_a_least(recipe):
    """A new setting without a bound is one that torch or transformers will find out about."""
    free = {"scale", "expert_alpha", "expert_beta", "ib_weight", "ib_eta", "ib_sign"}
    unbound = {
        field.name
        for which, field in NUMBERS
        if which == recipe and field.metadata.get("least") is None and field.metadata.get("above") is None
    }
    assert unbound <= free


@pytest.mark.parametrize(
    "recipe, given, message",
    [
        ("vlpet", dict(batch_sizes="{vqa: -2}"), r"batch_sizes\.vqa must be at least 1, got -2"),
        ("vlpet", dict(batch_sizes="{vqa: 2.5}"), r"batch_sizes\.vqa must be int, got 2\.5"),
        ("vlpet", dict(batch_sizes="{gqa: 2}"), "batch_sizes: unknown task 'gqa' of easy-vqa; there are: vqa"),
        ("vlpet", dict(batch_sizes="3"), "batch_sizes must be dict, got 3"),
        ("vlpet", dict(arms=""), "arms must name at least one of frozen, "),
        ("vlpet", dict(dropout="1"), r"dropout must be in \[0, 1\), got 1"),
        ("vlpet", dict(seed="4294967296"), r"seed must be in \[0, 4294967295\], got 4294967296"),
        ("vlpet", dict(seed="4294967295", seeds="2"), r"seed \+ seeds must be at most"),
        ("vlpet", dict(width="30"), "attention_heads must divide width, got 4 and 30"),
        ("vlpet", dict(output_dir=""), "output_dir must be a path, got ''"),
        ("vlpet", dict(output_dir="a\0b"), "output_dir must be a path without a null character"),
        ("vlpet", dict(splits="{vqa: 3}"), r"splits\.vqa must be dict, got 3"),
        ("vlpet", dict(encoder_places="[[a]]"), r"encoder_places"),
        ("petal", dict(ib_sign="3"), "ib_sign must be one of 1, -1; got 3"),
        ("petal", dict(amp="x"), "amp must be one of none, fp16, bf16; got 'x'"),
        ("petal", dict(generation="{num_beams: x}"), r"generation\.num_beams must be int, got 'x'"),
        ("petal", dict(generation="{repetition_penalty: 0}"), r"generation\.repetition_penalty must be above 0, got 0"),
        ("petal", dict(generation="{min_new_tokens: 9, max_new_tokens: 2}"), "min_new_tokens must be at most max_new"),
        ("petal", dict(max_target="{vqa: 0}"), r"max_target\.vqa must be at least 1, got 0"),
        ("petal", dict(task_instructions="{vqa: [3]}"), r"task_instructions\.vqa\[0\] must be text, got 3"),
        ("petal", dict(instructions='["{q.x}"]'), "{q} is the only field there is"),
        ("petal", dict(instructions='["{q:>1000000000}"]'), "{q} is the only field there is"),
        ("petal", dict(instructions='["{q"]'), "instruction template '{q' cannot be read"),
        ("petal", dict(language_model="llama", width="12"), "width must be an even multiple of attention_heads=4"),
    ],
)
def test_what_cannot_work_is_told_by_name(recipe, given, message):
    with pytest.raises(UserError, match=message):
        parsed(recipe, **given)


@pytest.mark.parametrize("recipe", RECIPES)
def test_presets_pass(recipe):
    arguments = RECIPES[recipe]
    for name in settings.presets(arguments.Settings):
        arguments.checked(arguments.read_preset(name) | dict(output_dir="x"))


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("output_dir: ~/run\n", encoding="utf-8-sig")
    given = vlpet.parse(["--config", "~/mine.yaml", "--data_dir=~/data", "--features_dir=~", "--host=~/bart"])
    assert given.output_dir == str(tmp_path / "run") and given.data_dir == str(tmp_path / "data")
    assert given.features_dir == str(tmp_path) and given.host == str(tmp_path / "bart")
    assert vlpet.parse(["--output_dir", "a/../b/", "--host", "facebook/bart-base"]).output_dir == "a/../b/"
    with pytest.raises(UserError, match="output_dir: '~nobody-at-all/x' has no home folder"):
        vlpet.parse(["--output_dir", "~nobody-at-all/x"])


def test_settings_that_yaml_cannot_read_are_named(tmp_path):
    for content in (b"\xff\xfe", b"lr: [", b"- 1", b"a: " + b"[" * 1000):
        (tmp_path / "bad.yaml").write_bytes(content)
        with pytest.raises(UserError, match="bad.yaml"):
            vlpet.parse(["--config", str(tmp_path / "bad.yaml")])


def test_yaml_is_read_as_people_mean_it(tmp_path):
    """YAML 1.1 reads 010 as 8 and 1:30 as 90, and of a name that stands twice the last counts."""
    file = tmp_path / "own.yaml"
    for text, steps in (("010", 10), ("1_000", 1000), ("+7", 7), ("12", 12)):
        file.write_text(f"steps: {text}\n")
        assert parsed("vlpet", steps=text).steps == vlpet.parse(["--config", str(file)]).steps == steps
    for text in ("1:30", "0x10", "0b11", "0o7"):
        with pytest.raises(UserError, match=f"steps must be int, got '{text}'"):
            parsed("vlpet", steps=text)
    with pytest.raises(UserError, match="lr must be float, got '1:30.5'"):
        parsed("vlpet", lr="1:30.5")
    for text in ("lr: 1\nlr: 2\n", "splits: {vqa: {train: [a], train: [b]}}\n"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"own.yaml: (.|\n)*stands there twice"):
            vlpet.parse(["--config", str(file)])


def test_values_are_taken_from_text_as_yaml_writes_them():
    assert checked_value("lr", "1e-3", float, {}) == 1e-3
    assert checked_value("steps", "1e3", int | None, {}) == 1000
    assert checked_value("seed", "9007199254740993", int, {}) == 2**53 + 1
    assert checked_value("steps", None, int | None, {}) is None
    assert checked_value("ib", False, str, {"choices": ("off", "on")}) == "off"
    assert yaml.safe_load("lr: 1e-3") == {"lr": "1e-3"}
    for value in (math.nan, math.inf, "nan", 10**400, True, None, [], "1" * 400):
        with pytest.raises(UserError, match="lr must be "):
            checked_value("lr", value, float, {})


def test_tasks_are_those_of_the_data():
    assert tasks.names(vlpet.checked({"steps": 1})) == ("vqa", "yes-no", "colour", "shape", "caption")
    assert {"vqa", "gqa", "nlvr", "caption"} <= set(tasks.of_kind("image-text", "vlpet"))
    assert "nlvr" not in tasks.of_kind("image-text", "petal")


def test_text_is_taken_as_it_is_written():
    """Where YAML reads numbers, dates, truths and nothing; by a flag and by --set alike."""
    for text in ("2024", "~", "1e3", "off", "2024-01-02", "no: 1"):
        assert parsed("petal", notice=text).notice == text
        assert petal.parse([f"--set=notice={text}"]).notice == text
    assert petal.parse(["--set=host=~"]).host == os.path.expanduser("~")  # a path: the home folder, not the default
    assert petal.parse(["--set=host=null"]).host is None and parsed("petal", host="null").host is None
    for nothing in ("null", "none"):
        assert parsed("petal", amp=nothing).amp is None
    with pytest.raises(UserError, match="amp must be one of none, fp16, bf16; got '~'"):
        parsed("petal", amp="~")


def test_lists_are_taken_by_commas_spaces_or_as_yaml():
    for text in ("frozen,vlpet", "frozen vlpet", "[frozen, vlpet]", '["frozen", "vlpet"]'):
        assert parsed("vlpet", arms=text).arms == ["frozen", "vlpet"]
        assert vlpet.parse([f"--set=arms={text}"]).arms == ["frozen", "vlpet"]
    with pytest.raises(UserError, match=r"--arms: cannot read '\[frozen'"):
        parsed("vlpet", arms="[frozen")
    with pytest.raises(UserError, match=r"arms\[0\] must be text, got 1"):
        parsed("vlpet", arms="[1]")


def test_an_output_folder_of_nothing_is_the_default(tmp_path):
    default = vlpet.parse([]).output_dir
    (tmp_path / "own.yaml").write_text("output_dir: ~\n")
    assert vlpet.parse(["--config", str(tmp_path / "own.yaml")]).output_dir == default
    assert vlpet.parse(["--set=output_dir=null"]).output_dir == default
    with pytest.raises(UserError, match="output_dir must be a path, got ''"):
        vlpet.parse(["--set=output_dir="])


def helped(recipe, capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        RECIPES[recipe].parse([*arguments, "--help"])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_tells_choices_and_what_the_preset_sets(capsys):
    text = helped("petal", capsys)
    assert "its language model (one of t5, llama, smollm2; default: t5; easy-vqa: llama)" in text
    assert "peak learning rate of PETAL (default: 0.003; easy-vqa: 0.005)" in text
    assert "peak learning rate of LoRA (default: 0.003) " in text  # the preset says the same
    assert "what there is (easy-vqa: frozen,petal,lora,full)" in text
    assert "mixed precision on a GPU (one of none, fp16, bf16)" in text
    text = helped("petal", capsys, "--preset", "smollm2")
    assert "its language model (one of t5, llama, smollm2; default: t5; smollm2: smollm2)" in text
    assert "core tensor, as released, or diagonal, as in the paper's CP (one of full, diagonal; default: full)" in text


def test_help_of_an_unknown_preset_is_refused():
    with pytest.raises(UserError, match="unknown preset 'nope'"):
        vlpet.parse(["--preset=nope", "--help"])


def test_help_of_every_preset_is_printed(capsys):
    for recipe, arguments in RECIPES.items():
        for preset in settings.presets(arguments.Settings):
            assert f"below, {preset}'s own values" in helped(recipe, capsys, f"--preset={preset}")
