"""Every row of both papers' tables of tasks and baselines: a preset that reads it, its files, its metric, its rate."""

import dataclasses
import json

import pytest

from petx import baselines, metrics, tasks
from petx.data.examples import Example
from petx.errors import UserError
from petx.train import petal, vlpet
from tests.fixtures import image_text, video_text

RECIPES = {"vlpet": vlpet, "petal": petal}
IMAGE, CAPTION = ("paper-bart-image", "paper-t5-image"), ("cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l")
TASKS = [  # method, task, presets, what it is scored by, the paper's column first
    ("vlpet", "vqa", IMAGE, ("accuracy", "number", "normalised")),
    ("vlpet", "gqa", IMAGE, ("accuracy", "normalised")),
    ("vlpet", "nlvr", IMAGE, ("accuracy", "consistency")),
    ("vlpet", "caption", IMAGE, CAPTION),
    ("vlpet", "tvqa", ("paper-bart-video",), ("accuracy",)),
    ("vlpet", "how2qa", ("paper-bart-video",), ("accuracy",)),
    ("vlpet", "tvc", ("paper-bart-video",), CAPTION),
    ("vlpet", "yc2c", ("paper-bart-video",), CAPTION),
    ("petal", "okvqa", ("paper-okvqa",), ("accuracy", "number", "normalised")),
    ("petal", "aokvqa", ("paper-aokvqa",), ("accuracy", "normalised")),
    ("petal", "gqa", ("paper-gqa",), ("accuracy", "normalised")),
    ("petal", "textvqa", ("paper-textvqa",), ("accuracy", "first answer")),
    ("petal", "flickr30k", ("paper-flickr30k",), (*CAPTION, "cider raw")),
    ("petal", "textcaps", ("paper-textcaps",), (*CAPTION, "cider raw")),
]
RATES = {  # of VL-PET's table on BART-base; T5's are all 3e-4 but full tuning's
    "full": 1e-4,
    "bitfit": 1e-3,
    "prompt": 1e-3,
    "compacter": 1e-3,
    "hyperformer": 1e-3,
    "lora": 1e-3,
    "vl-adapter": 1e-3,
    "vlpet": 1e-3,
}
PETALS = ("full", "scaled-lora", "adapter", "head", "bitfit", "aurora", "petal")


def preset(method, name, **more):
    arguments = RECIPES[method].arguments
    return arguments.checked(arguments.read_preset(name) | more)


@pytest.mark.parametrize("method, name, presets, columns", TASKS)
def test_a_task_has_presets_files_and_a_metric(method, name, presets, columns):
    spec = tasks.find(name)
    assert spec.read is not None and spec.files and method in spec.methods
    for each in presets:
        settings = preset(method, each)
        assert name in settings.tasks and set(settings.splits[name]) == {"train", "dev", "test"}
    example = Example("q", ("i",), (("true", 1.0),), ("true",) * 10, kind="number", choices=("true", "false"))
    scores = metrics.find(spec.metric)(["true"], [example])
    assert set(columns) <= set(scores) and next(iter(scores)) == columns[0]


@pytest.mark.parametrize("level", ["large", "middleX", "middleY", "small"])
def test_vlpets_levels_are_settings_of_its_presets(level):
    assert all(preset("vlpet", each, level=level).level == level for each in (*IMAGE, "paper-bart-video"))


def test_baselines_have_the_tables_rates():
    known = baselines.of_method("vlpet")
    for name, rate in RATES.items():
        bart, t5 = (preset("vlpet", each, arms=[name]) for each in IMAGE)
        assert known[name].learning_rate(bart) == rate
        assert known[name].learning_rate(t5) == (1e-4 if name == "full" else 3e-4)
    assert set(PETALS) <= set(baselines.of_method("petal"))


def test_how2qa_in_its_released_rows(tmp_path):
    """Four choices, where TVQA has five."""
    row = {"vid_name": "v", "qid": "h1", "q": "who?", "a0": "x.", "a1": "y", "a2": "z", "a3": "w", "answer_idx": 3}
    folder = tmp_path / "ann" / "how2qa"
    folder.mkdir(parents=True)
    (folder / "how2qa_val_release.jsonl").write_text(json.dumps(row | {"ts": "1-2"}))
    (example,) = tasks.find("how2qa").examples(tmp_path, ["val_release"], training=False)
    assert example.answers == (("a3", 1.0),) and example.images == (("how2", "v"),)
    assert example.text == "[Subs]  [Q] who? [TS] (1-2) [Choices] a0: x. a1: y. a2: z. a3: w. how2qa: "


@pytest.mark.parametrize(
    "said, message",
    [
        ([], None),
        ([{"text": "", "start": 0, "end": 1}], None),
        (None, r"tv_subtitles\.jsonl: line 2: sub must be a list of \{text, start, end\}, got None"),
        ([{"start": 0}], r"tv_subtitles\.jsonl: line 2: sub must be a list"),
    ],
)
def test_a_video_where_nothing_is_said(tmp_path, said, message):
    folder = video_text.write_data(tmp_path)
    rows = [{"vid_name": "a", "sub": [{"text": "red"}]}, {"vid_name": "b", "sub": said}]
    (folder / "ann" / "tv_subtitles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if message is None:
        heard, silent, unknown = tasks.find("tvqa").examples(folder, ["val"], training=False)
        assert heard.text.startswith("[Subs] red [Q]") and {silent.text[:11], unknown.text[:11]} == {"[Subs]  [Q]"}
        return
    with pytest.raises(UserError, match=message):
        tasks.find("tvqa").examples(folder, ["val"], training=False)


@pytest.mark.parametrize(
    "more, message",
    [
        (dict(tasks=["vqa", "vqaa"]), r"unknown task 'vqaa' of image-text; there are: .*caption"),
        (dict(tasks=["vqa"]), r"was begun with tasks=\['vqa', 'gqa', 'nlvr', 'caption'\], not \['vqa'\]; resume with"),
        (dict(visual_tokens=3), r"\.h5: 9 visual tokens cannot be pooled to visual_tokens=3"),
    ],
)
def test_what_cannot_go_on_is_told_before_training(own, tmp_path, more, message):
    settings = image_text.settings(own, tmp_path / "out", arms=["vlpet"])
    (tmp_path / "out").mkdir()
    if "tasks" in more:
        (tmp_path / "out" / "settings.json").write_text(json.dumps(dataclasses.asdict(settings)))
        more |= {"resume": True}
    with pytest.raises(UserError, match=message):
        vlpet.run(image_text.settings(own, tmp_path / "out", arms=["vlpet"], **more))
    assert not (tmp_path / "out" / "vlpet").exists()
