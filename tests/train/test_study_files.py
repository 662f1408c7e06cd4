"""What is wrong in a study's file or its command is named before anything runs; a metric, after the first run."""

import dataclasses
import datetime
import json
import time

import pytest

from petx import studies
from petx.cli import main as petx
from petx.errors import UserError
from petx.studies import running
from tests.train.test_studies import write


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(metrics="accuracy"), "unknown key 'metrics'; there are: description, method, "),
        (dict(metric=None), "mine.yaml: metric is missing"),
        (dict(seeds=3), "seeds must be a list, got 3"),
        (dict(seeds=[0, 0]), r"seeds must be different integers from 0 to 4294967295, at least one; got \[0, 0\]"),
        (dict(seeds=[]), "at least one; got"),
        (dict(method="lora"), "method must be one of vlpet, petal; got 'lora'"),
        (dict(preset="smoky"), "unknown preset 'smoky' of vlpet; there are: chat-vqa, easy-vqa, "),
        (dict(axes=None), "one of axes and cells must be given, got none"),
        (dict(cells={"a": {}}), "one of axes and cells must be given, got both"),
        (dict(axes=None, cells={}), "cells must name at least one"),
        (dict(axes=None, cells={"": {}}), "a cell's name must not be empty, got ''"),
        (dict(axes={}), "axes must name at least one setting, got none"),
        (dict(axes={2: [1]}), "axes must be {setting: [values]}, got the name 2"),
        (dict(axes={"level": [datetime.date(2024, 1, 2)]}), "level must be text, got datetime.date"),
        (dict(axes={"rank": [8, 8.0]}), "the cells rank=8 and rank=8.0 have the same settings"),
        (dict(settings={2: 3}), "a setting's name must be text, got 2"),
        (dict(axes=None, cells={"a": 3}), "cells must be {name: {setting: value}}, got {'a': 3}"),
        (dict(axes={"level": "large"}), "axes.level must be a list of at least one value, got 'large'"),
        (dict(axes={"level": ["large", "large"]}), "axes.level has a value twice"),
        (dict(axes={"levels": ["large"]}), "cell levels=large: unknown setting 'levels'; did you mean 'level'"),
        (dict(axes={"level": ["huge"]}), "cell level=huge: level must be one of large, "),
        (dict(settings={"seed": 3}), "seed is not a setting of a cell"),
        (dict(axes=None, cells={"a b": {}, "a/b": {}}), "the cells a b and a/b would share the folder a_b"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message.replace("{", r"\{").replace("[values]", r"\[values\]")):
        studies.read(write(tmp_path, **changes))


@pytest.mark.parametrize(
    "command, message",
    [
        ("granularityy", "unknown study 'granularityy'; there are: designs, "),
        ("nowhere.yaml", "cannot read settings from nowhere.yaml"),
        ("smoke --jobs 0", "--jobs must be at least 1, got 0"),
        ("smoke --seeds 1,b", "--seeds must be integers with commas between them, such as 0,1,2; got '1,b'"),
        ("smoke --seeds 4294967296", "--seeds must be different integers from 0 to 4294967295"),
        ("smoke --output_dir=", "--output_dir must be a path, got ''"),
        ("smoke --seeds 1,1", "--seeds must be different integers"),
        ("smoke --set rank", "--set wants KEY=VALUE, got 'rank'"),
        ("", "name a study; there are: designs, "),
    ],
)
def test_a_wrong_command_runs_nothing(tmp_path, capsys, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    assert petx(["study", *command.split()]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def finish(job):
    """As if the run of ``job`` had ended well, with one score."""
    record = dict(seed=0, test={"accuracy": 1.0}, dev={"accuracy": 1.0})
    job.folder.mkdir(parents=True, exist_ok=True)
    arms = {arm: [record] for arm in job.settings.all_arms}
    (job.folder / "results.json").write_text(json.dumps({"arms": arms, "baselines": {}}))
    (job.folder / "done.json").write_text("{}")


@pytest.mark.parametrize("resumed", [False, True])
def test_a_metric_that_no_run_has_is_told_after_the_first(tmp_path, monkeypatch, resumed):
    study = dataclasses.replace(studies.read(write(tmp_path, seeds=[0, 1, 2])), metric="cider")
    ran = []

    def run_cell(children, job, host):
        until = time.monotonic() + 10
        while ran and not children.stopped and time.monotonic() < until:  # a second run takes long
            time.sleep(0.01)
        if not children.stopped:
            ran.append(job.title)
            finish(job)

    monkeypatch.setattr(running, "_shared_hosts", lambda study: [])
    monkeypatch.setattr(running._Children, "run_cell", run_cell)
    if resumed:
        finish(running.jobs(study, tmp_path)[1][-1])
    said = "metric 'cider' is not a score of level=none, seed 2" if resumed else "not a score of level=large, seed 0"
    with pytest.raises(UserError, match=f"{said}; there are: accuracy"):
        running.run(study, tmp_path, at_once=1, say=lambda text: None)
    assert len(ran) == (0 if resumed else 1)
