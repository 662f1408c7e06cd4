"""``--data datasets``: sets of the library ``datasets``, saved to disk here, by a mapping of their columns."""

import importlib.util
import io

import pytest
import torch
import yaml
from PIL import Image

from petx import tasks
from petx.cli import main as petx
from petx.errors import UserError
from petx.tasks import mapped
from petx.train import petal, vlpet
from petx.train.petal import arguments
from petx.train.run import Run
from tests.fixtures import image_text
from tests.fixtures import instruct_blip as fixture

datasets = pytest.importorskip("datasets")
COLOURS = fixture.COLOURS
SPLITS = {"train": ["train"], "dev": ["val"], "test": ["test"]}


def picture(colour):
    kept = io.BytesIO()
    Image.new("RGB", (32, 32), COLOURS[colour]).save(kept, "PNG")
    return {"bytes": kept.getvalue(), "path": None}


def rows(count, answers=True):
    colours = [list(COLOURS)[i % len(COLOURS)] for i in range(count)]
    columns = {
        "pic": [picture(colour) for colour in colours],
        "ask": ["what color is it?"] * count,
        "qid": [100 + i for i in range(count)],
        "replies": [[{"answer": colour}] * 9 + [{"answer": "dark"}] if answers else None for colour in colours],
        "best": [colour if answers else None for colour in colours],
        "texts": [[f"a {colour} thing", f"something {colour}"] if answers else None for colour in colours],
        "name": [f"COCO_{i:04d}" for i in range(count)],
    }
    return columns


def dataset(columns):
    features = {"pic": datasets.Image(), "ask": datasets.Value("string"), "qid": datasets.Value("int64")}
    features |= {"replies": datasets.List({"answer": datasets.Value("string")}), "best": datasets.Value("string")}
    features |= {"texts": datasets.List(datasets.Value("string")), "name": datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A set of questions and captions with three splits, the last without answers; and a tiny InstructBLIP."""
    folder = tmp_path_factory.mktemp("mapped")
    parts = {"train": dataset(rows(6)), "val": dataset(rows(3)), "test": dataset(rows(2, answers=False))}
    datasets.DatasetDict(parts).save_to_disk(folder / "set")
    fixture.write_host(folder / "host")
    return folder


QUESTIONS = {"question": "ask", "answers": "replies.answer", "image": "pic", "id": "qid", "metric": "vqa"}


def values(saved, **mapping):
    mapping = {"path": str(saved / "set")} | (mapping or QUESTIONS)
    small = dict(data="datasets", tasks=["colours"], datasets={"colours": mapping}, splits={"colours": SPLITS})
    small |= dict(host=str(saved / "host"), epochs=1, batch_size=3, arms=["petal"], rank=4, experts=2, expert_rank=2)
    return small | dict(eval_every=2, save_every=2, log_every=1, workers=0)


def settings(saved, out, mapping=None, **more):
    return arguments.checked(values(saved, **(mapping or {})) | {"output_dir": str(out)} | more)


def loaded(settings, method=petal):
    run = Run(method.RECIPE, settings)
    run.prepare()
    return run.load_data()


def test_questions_answers_and_pictures_by_their_columns(saved, tmp_path):
    data = loaded(settings(saved, tmp_path))
    (train,), (dev,), (test,) = data.train, data.dev, data.test
    assert (len(train), len(dev), len(test)) == (6, 3, 2)
    first = train.examples[0]
    assert (first.text, first.id, first.images) == ("what color is it?", 100, ("train/0",))
    assert first.references == ("red",) * 9 + ("dark",) and dict(first.answers)["red"] == 1.0
    assert train.metric == "vqa" and dev.answered and not test.answered
    pixels, _ = train.features("train/1")
    wanted, _ = train.features.pixels(Image.new("RGB", (32, 32), COLOURS["green"]), "", "")
    assert torch.equal(pixels, wanted) and not torch.equal(pixels, train.features("val/0")[0])
    assert dev.score(["red", "green", "dark"])["accuracy"] == pytest.approx(100 * 2.3 / 3, abs=0.5)


def test_one_answer_or_captions(saved, tmp_path):
    one = loaded(settings(saved, tmp_path, dict(question="ask", answers="best", image="pic"))).dev[0]
    assert [example.answers for example in one.examples] == [((colour, 1.0),) for colour in COLOURS]
    assert one.metric == "exact" and one.examples[0].references == ()
    many = loaded(settings(saved, tmp_path, dict(captions="texts", image="pic", id="qid")))
    assert len(many.train[0]) == 12 and many.train[0].loss == "token"  # each caption is trained on
    assert many.train[0].examples[1].answers == (("something red", 1.0),)
    assert [example.references for example in many.dev[0].examples][0] == ("a red thing", "something red")
    assert many.dev[0].metric == "caption" and many.dev[0].num_beams == 5 and many.dev[0].examples[2].id == 102


def test_features_are_found_by_the_names_in_a_column(saved, own, tmp_path):
    small = dict(data="datasets", tasks=["colours"], splits={"colours": SPLITS}, epochs=1, batch_sizes={}, batch_size=3)
    names = dict(path=str(saved / "set"), question="ask", answers="best", image="name", prompt="vqa: ")
    given = image_text.settings(own, tmp_path, **small, datasets={"colours": names})
    data = loaded(given, vlpet)
    item = data.train[0][2]
    assert item["visual_features"].shape == (4, image_text.WIDTH)
    assert torch.equal(item["visual_features"], data.train[0].features("COCO_0002")[0])
    assert data.train[0].prompt == "vqa: " and data.train[0].examples[2].images == ("COCO_0002",)
    with pytest.raises(UserError, match=r"datasets.colours: pic holds pictures, and BART reads features by name"):
        loaded(image_text.settings(own, tmp_path, **small, datasets={"colours": names | {"image": "pic"}}), vlpet)


def test_a_folder_of_json_is_loaded_as_from_the_hub(saved, tmp_path):
    (tmp_path / "rows").mkdir()
    line = '{"ask": "what color is it?", "best": "red", "name": "0"}\n'
    for split in ("train", "validation"):
        (tmp_path / "rows" / f"{split}.jsonl").write_text(line * 3)
    names = {"path": str(tmp_path / "rows"), "question": "ask", "answers": "best", "image": "name"}
    spec, columns = mapped.task_of("mine", names)
    splits = ("train", "validation", "train[:1]")
    assert [len(spec.examples(".", [split], training=True)) for split in splits] == [3, 3, 1]
    assert not columns.pictures("train")


@pytest.mark.parametrize(
    "mapping, message",
    [
        (dict(QUESTIONS, query="ask"), "datasets.colours: unknown 'query'; there are: path, name, revision, metric"),
        (dict(QUESTIONS, captions="texts"), "datasets.colours: one of answers and captions must name a column"),
        (dict(image="pic"), "datasets.colours: one of answers and captions must name a column"),
        (dict(answers="best"), "datasets.colours: question is missing"),
        (dict(QUESTIONS, metric="accuracy"), "datasets.colours.metric must be one of "),
        (dict(QUESTIONS, max_target=0), "datasets.colours.max_target must be at least 1, got 0"),
        (dict(QUESTIONS, image=3), "datasets.colours.image must be text, got 3"),
        (dict(QUESTIONS, path=None), "datasets.colours.path must be text, got None"),
        (dict(QUESTIONS, image="picture"), "image is no column, got 'picture'; there are: pic, ask, "),
        (dict(QUESTIONS, path="nowhere/at-all"), "datasets: cannot load 'nowhere/at-all', split 'train'"),
        (dict(QUESTIONS, answers="replies"), "train, row 0: answers must be a list of texts"),
        (dict(QUESTIONS, question="replies.answer"), "train, row 0: question must be text"),
        (dict(QUESTIONS, image="name"), "data_dir must be the folder of the images that datasets.colours.image names"),
    ],
)
def test_what_is_wrong_in_a_mapping_is_named(saved, tmp_path, monkeypatch, mapping, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        loaded(settings(saved, tmp_path, mapping))


def test_splits_rows_and_settings_that_do_not_fit(saved, tmp_path, monkeypatch):
    splits = {"colours": SPLITS | {"dev": ["validation"]}}
    with pytest.raises(UserError, match="set has no split 'validation'; there are: train, val, test"):
        loaded(settings(saved, tmp_path, splits=splits))
    with pytest.raises(UserError, match="test, row 0 has no 'answers'"):
        loaded(settings(saved, tmp_path, splits={"colours": SPLITS | {"train": ["test"]}}))
    with pytest.raises(UserError, match="datasets maps columns for data=datasets, got data=easy-vqa"):
        arguments.checked({"steps": 1, "datasets": {"colours": QUESTIONS}})
    with pytest.raises(UserError, match="batch_sizes: unknown task 'shapes' of datasets; there are: colours"):
        settings(saved, tmp_path, batch_sizes={"shapes": 3})
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "datasets" else found(name))
    with pytest.raises(UserError, match="read by the library datasets; get it with: pip install datasets"):
        tasks.source("datasets").check(settings(saved, tmp_path))


def test_a_damaged_or_missing_picture_is_named_before_training(saved, tmp_path):
    for i, (wrong, message) in enumerate([(b"\x89PNG no more", "as an image"), (None, "there is no picture")]):
        columns = rows(3)
        columns["pic"][1] = wrong and {"bytes": wrong, "path": None}
        folder = tmp_path / str(i)
        datasets.DatasetDict(dict.fromkeys(("train", "val", "test"), dataset(columns))).save_to_disk(folder)
        given = settings(saved, tmp_path, dict(QUESTIONS, path=str(folder)))
        with pytest.raises(UserError, match=f"{i}, train, row 1, pic.*{message}"):
            loaded(given)


@pytest.mark.slow
def test_a_run_from_a_yaml_file(saved, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values(saved, **QUESTIONS)))
    command = ["train", "petal", "--preset", "smoke", "--config", str(tmp_path / "mine.yaml"), "--workers", "1"]
    assert petx([*command, "--output_dir", str(tmp_path / "out")]) == 0
    predicted = tmp_path / "out" / "petal" / "seed-0" / "predictions"
    line = '{"id": 101, "image": "val/1", "question": "what color is it?", "answer": '
    assert line in (predicted / "dev-colours.jsonl").read_text()
    capsys.readouterr()
    assert petx(["score", str(predicted / "dev-colours.jsonl")]) == 0
    assert "3 examples of colours" in capsys.readouterr().out
