"""``petx demo``: every model of a run answers beside the frozen one; the page itself needs gradio."""

import json
import shutil
import socket
import sys

import pytest

from petx import baselines, hosts
from petx.cli import main as petx
from petx.errors import UserError
from petx.train import demo, tuned
from tests.fixtures import instruct_blip as fixture


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run's folder with three tuned models of a tiny LLaVA, untrained, and its data."""
    folder = tmp_path_factory.mktemp("demo")
    fixture.write_other_host(folder / "host", "llava")
    fixture.write_data(folder / "data", images=3)
    settings = fixture.settings(folder, folder / "run", context="off", ib="off", instructions=["{q}"])
    kind = hosts.find("llava")
    for arm in ("full", "petal", "lora"):
        model = baselines.find(arm, "petal").build(kind, hosts.load(kind, folder / "host", settings), settings)
        into = folder / "run" / arm / "seed-42" / "tuned"
        into.parent.mkdir(parents=True)
        tuned.save(model, into, folder / "host", arm=arm, seed=42, settings=settings, scores={})
    return folder


@pytest.fixture(scope="module")
def models(made):
    return demo.rows(made / "run")


def test_models_stand_in_the_tables_order_beside_the_frozen_one(models):
    assert [row.arm for row in models] == ["frozen", "petal", "lora", "full"]
    assert models[0].title == "frozen host" and models[1].title == "PETAL"
    assert type(models[0].loaded.model).__name__ == "LlavaForConditionalGeneration"


def test_every_model_answers_with_its_probability(made, models):
    image = str(made / "data" / "images" / "0.png")
    table, note = demo.answered(models, image, "what color is it?")
    assert [line[0] for line in table] == [row.title for row in models] and note == ""
    assert all(0 <= float(line[2]) <= 1 for line in table)
    assert table[0][1:] == table[2][1:] == table[3][1:]  # LoRA and full tuning, untrained, are the frozen model


def test_the_placeholder_of_an_image_is_taken_out_of_a_question(made, models):
    image = str(made / "data" / "images" / "0.png")
    asked, _ = demo.answered(models[:1], image, "what color is it?")
    assert demo.answered(models[:1], image, "<image>\nwhat color <image>is it?")[0] == asked
    with pytest.raises(UserError, match="the question must not be empty, got '<image>'"):
        demo.answered(models[:1], image, "<image>")


@pytest.mark.parametrize(
    ("image", "question", "message"), [(None, "what?", "choose an image first"), ("a.png", " ", "ask a question first")]
)
def test_what_is_missing_on_the_page_is_told(models, image, question, message):
    with pytest.raises(UserError, match=message):
        demo.answered(models, image, question)


def test_arms_may_be_named(made):
    assert [row.arm for row in demo.rows(made / "run", ["full", "full"])] == ["frozen", "full"]
    with pytest.raises(UserError, match="has no tuned 'vlpet'; there are: full, lora, petal"):
        demo.rows(made / "run", ["vlpet"])


def test_a_folder_of_an_arm_may_have_been_renamed(made, tmp_path):
    shutil.copytree(made, tmp_path / "made")
    run = tmp_path / "made" / "run"
    (run / "petal").rename(run / "petal-first")
    (run / "lora").rename(run / "mine")
    assert [row.arm for row in demo.rows(run, ["full", "mine", "petal-first"])] == [
        *("frozen", "petal-first", "mine", "full")
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": "mine"}, "petx.json: unknown arm 'mine'; there are: frozen, petal"),
        ({"scores": {"test": 5}}, r"petx.json: scores.test must be \{metric: number\}, got 5"),
        ({"scores": {"dev": {"accuracy": "9"}}}, r"petx.json: scores.dev must be \{metric: number\}, got .*'9'"),
    ],
)
def test_a_damaged_manifest_names_its_field(made, tmp_path, change, message):
    shutil.copytree(made / "run" / "petal" / "seed-42" / "tuned", tmp_path / "tuned")
    shutil.copytree(made / "host", tmp_path / "host")
    file = tmp_path / "tuned" / "petx.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"host": "../host"} | change))
    with pytest.raises(UserError, match=message):
        tuned.load(tmp_path / "tuned")


def test_a_folder_that_is_no_run_is_told(made):
    with pytest.raises(UserError, match="holds no tuned model: name an output folder of petx train"):
        demo.rows(made / "data")


def test_without_gradio_it_is_told_what_to_install(made, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert petx(["demo", str(made / "run")]) == 2
    assert "pip install gradio" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--port", "0"], "--port must be in [1, 65535], got 0"),
        (["--num_beams", "0"], "--num_beams must be in [1, 1024], got 0"),
        (["--arms", ","], "--arms must name at least one"),
    ],
)
def test_bad_arguments_are_named(made, more, message, capsys):
    assert petx(["demo", str(made / "run"), *more]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(made, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert petx(["demo", str(made / "run"), "--port", str(port)]) == 2
    assert f"--port {port} cannot be served: Address already in use" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_asks_every_model(made, models):
    gradio = pytest.importorskip("gradio")
    page = demo.page(models)
    kinds = {type(block) for block in page.blocks.values()}
    assert {gradio.Image, gradio.Textbox, gradio.Dataframe} <= kinds
    (table,) = [block for block in page.blocks.values() if isinstance(block, gradio.Dataframe)]
    assert table.wrap and len(table.column_widths) == len(demo.HEADINGS)  # no column out of sight behind a long title
    (ask, *_) = [function.fn for function in page.fns.values()]
    table, _ = ask(str(made / "data" / "images" / "0.png"), "what color is it?")
    assert len(table) == len(models)
    with pytest.raises(gradio.Error, match="choose an image first"):
        ask(None, "what color is it?")
