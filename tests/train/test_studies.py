"""``petx study``: what its files say, a whole small one run in child processes, and what is refused."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import time

import pytest
import torch
import yaml
from PIL import Image

from petx import baselines, hosts, studies
from petx.baselines._sizes import counts
from petx.cli import main as petx
from petx.errors import UserError
from petx.files import held
from petx.studies import plan, results, running
from petx.train import petal, recipes, stages, vlpet
from petx.train.run import Run
from petx.train.settings import checked, read_preset

SLOW_FIXTURES = {"smoke"}
TINY = dict(train_images=20, dev_images=4, test_images=4, width=32, ffn=32, layers=1, rank=8, host_steps=2, steps=2)
TINY |= dict(batch_size=8, host_batch_size=8, eval_every=2, save_every=2, log_every=1)


def write(folder, **changes):
    """A study file with ``changes``; None leaves a key out."""
    values = dict(description="Mine.", method="vlpet", preset="smoke", metric="accuracy", seeds=[0])
    values |= dict(axes={"level": ["large", "none"]}) | changes
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}, sort_keys=False))
    return str(path)


# ---- what the files say ----


@pytest.mark.parametrize("name", studies.names())
def test_every_study_is_whole(name):
    study = studies.read(name)
    assert len(study.cells) > 1 and study.description.endswith(".")
    differing = {json.dumps(dataclasses.asdict(cell.settings)) for cell in study.cells}
    assert len(differing) == len(study.cells)  # no cell is another one twice


class Words(list):
    """Stands in for a tokenizer and for the data of a small host."""

    pad_token_id, eos_token_id, bos_token_id = 1, 2, 0
    feature_stats = None

    def convert_tokens_to_ids(self, token):
        return len(self) - 1


@pytest.mark.slow
@pytest.mark.parametrize("name", studies.names())
def test_every_cell_can_be_built(name):
    study, words = studies.read(name), Words(range(50))
    words.text = words.qformer = words.tokenizer = words
    recipe = recipes.find(study.method)
    trained, saved = {}, {}
    for cell in study.cells:
        settings = cell.settings
        torch.manual_seed(0)
        host = hosts.find(recipe.small_host)
        for arm in settings.all_arms:
            model = baselines.find(arm, study.method).build(host, host.small(settings, words), settings)
            trained[cell.name] = counts(host, model)["trainable"]
            saved[cell.name] = [p for p in model.parameters() if p.requires_grad] if name == "designs" else None
    if name == "designs":  # three are one function from one start
        for other in ("up, 4 heads", "down-up, 4 heads"):
            assert all(map(torch.equal, saved["down, 4 heads"], saved[other]))
        assert trained["pair, 8 heads"] < trained["pair, 1 head"] == trained["down, 4 heads"]
    if name in ("rank", "petal-rank"):
        assert list(trained.values()) == sorted(set(trained.values()))


def test_axes_are_combined_and_settings_laid_over(tmp_path):
    changes = dict(
        axes={"level": ["large", "none"], "decoder_places": [["value"], []]}, settings={"rank": 8, "steps": 3}
    )
    study = studies.read(write(tmp_path, **changes), seeds=[4, 7], assignments=["steps=5", "batch_sizes.vqa=2"])
    assert [cell.name for cell in study.cells] == [
        "level=large,decoder_places=value",
        "level=large,decoder_places=none",
        "level=none,decoder_places=value",
        "level=none,decoder_places=none",
    ]
    one = study.cells[1].settings
    assert (one.level, one.decoder_places, one.rank, one.steps, one.host_steps) == ("large", [], 8, 5, 40)
    assert one.batch_sizes == {"vqa": 2} and study.seeds == [4, 7]


def test_list_shows_studies_and_cells(capsys):
    assert petx(["study", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == studies.names() and all(len(line.split()) > 3 for line in lines)
    assert petx(["study", "granularity", "--list"]) == 0
    assert "\n  level=middleX\n" in capsys.readouterr().out


# ---- small hosts that cells share ----


@pytest.mark.parametrize("method", ["vlpet", "petal"])
def test_the_small_host_does_not_depend_on_what_is_said_to_come_after(petx_cache, tmp_path, method, monkeypatch):
    kind, reads = recipes.find(method).settings, set()
    more = {} if method == "vlpet" else dict(lm_layers=1, queries=2)
    values = read_preset(kind, "smoke") | TINY | more | dict(output_dir=str(tmp_path))
    settings = checked(kind, values)
    assert set(kind.after_host) <= {field.name for field in dataclasses.fields(kind)}
    run = Run({"vlpet": vlpet, "petal": petal}[method].RECIPE, settings)
    run.prepare()

    class Watched(kind):
        def __getattribute__(self, name):
            reads.add(name)
            return super().__getattribute__(name)

    settings.__class__ = Watched
    run.load_data()
    stages.prepare_host(run)
    assert {"host_steps", "width", "train_images", "weight_decay"} <= reads
    # These cut the training data alone, read in the same pass (test_few_shot.py holds the rest to that), or are only
    # compared with it.
    beside = {"few_shot", "tasks", "ib_vocabulary", "lemmatize"}
    assert {"few_shot", "tasks"} <= reads and not (reads - beside) & set(kind.after_host)


def test_cells_share_a_host_unless_it_differs(tmp_path):
    cells = {"a": {"rank": 8}, "b": {"lr_lora": 1e-4}, "wide": {"width": 64}, "given": {"host": "x"}}
    hosts, runs = running.jobs(studies.read(write(tmp_path, axes=None, cells=cells, seeds=[0, 5])), tmp_path)
    assert [(job.settings.seed, job.settings.arms) for job in hosts] == [(0, ["frozen"]), (5, ["frozen"])]
    assert [job.host for job in runs] == [hosts[0], hosts[0], None, None, hosts[1], hosts[1], None, None]


# ---- a whole one ----


@pytest.fixture(scope="module")
def smoke(petx_cache, tmp_path_factory):
    """Output folder and printed text of ``petx study smoke --jobs 2``."""
    out = tmp_path_factory.mktemp("study") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETX_CACHE", str(petx_cache))
        printed = []
        patch.setattr("builtins.print", lambda *values, **_: printed.append(" ".join(map(str, values))))
        assert petx(["study", "smoke", "--jobs", "2", "--output_dir", str(out)]) == 0, "\n".join(printed)
    return out, "\n".join(printed)


def test_smoke_runs_every_cell(smoke):
    out, printed = smoke
    found = json.loads((out / "results.json").read_text())
    assert [row["place"] for row in found["rows"]] == [{"level": "large"}, {"level": "middleX"}]
    assert found["missing"] == [] and {"blind", "majority", "frozen host"} == set(found["beside"])
    for row, cell in zip(found["rows"], ("level=large", "level=middleX"), strict=True):
        record = json.loads((out / "cells" / cell / "seed-0" / "vlpet" / "seed-0" / "result.json").read_text())
        assert row["trainable"] == record["trainable"] and row["runs"][0]["test"] == record["test"]
        assert row["test"] == {"mean": record["test"]["accuracy"], "spread": None}
        own, shared = (out / part / "host" / "model.safetensors" for part in (f"cells/{cell}/seed-0", "hosts/0/seed-0"))
        assert own.read_bytes() == shared.read_bytes()
    assert found["rows"][0]["trainable"] > found["rows"][1]["trainable"]
    table = [line for line in (out / "results.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3 + 2 and len({line.count("|") for line in table}) == 1
    assert "One seed, 0" in printed and str(out / "results.png") in printed
    with Image.open(out / "results.png") as picture:
        assert picture.size[0] > 800 and len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_what_is_finished_is_not_run_again(smoke, capsys, monkeypatch):
    out = smoke[0]
    before = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/*/results.json")}
    monkeypatch.setattr(running.subprocess, "Popen", None)  # nothing may be started
    assert petx(["study", "smoke", "--output_dir", str(out)]) == 0
    assert "2 runs, 2 finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert petx(["study", "smoke", "--output_dir", str(out), "--set", "lr=1e-4"]) == 2
    said = capsys.readouterr().err
    assert "level=large/seed-0 was run with lr=0.003, not 0.0001" in said and "--output_dir" in said


def test_an_unfinished_cell_is_finished_and_a_failing_one_is_named(smoke, petx_cache, tmp_path, capsys, monkeypatch):
    """As interruptions leave them: begun, with their hosts, without a report; and one host has been broken since."""
    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    out = tmp_path / "out"
    shutil.copytree(smoke[0], out)
    large, middle = (out / "cells" / cell / "seed-0" for cell in ("level=large", "level=middleX"))
    wanted = json.loads((middle / "results.json").read_text())["arms"]["vlpet"][0]["test"]
    for cell in (large, middle):
        (cell / "results.json").unlink()
        shutil.rmtree(cell / "vlpet")
    (large / "host" / "model.safetensors").write_bytes(b"broken")
    assert petx(["study", "smoke", "--output_dir", str(out), "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    assert "2 runs, 0 finished" in said and "level=middleX, seed 0: done" in said
    assert "level=large, seed 0: failed with exit code 2: petx: error: the host's model.safetensors" in said
    assert str(large / "log.txt") in said
    assert "Not finished: level=large, seed 0." in said
    assert json.loads((middle / "results.json").read_text())["arms"]["vlpet"][0]["test"] == wanted
    found = json.loads((out / "results.json").read_text())
    assert len(found["rows"]) == 1 and found["missing"] == ["level=large, seed 0"]


CHILD = """#!/bin/sh
case "$*" in *level=large*) exit 3;; esac
sleep 60 &
trap 'kill $!; echo interrupted; exit 130' TERM
echo ready
wait
"""


def test_an_interruption_ends_the_children(tmp_path, monkeypatch):
    """The first child fails at once, and at that news the user presses Ctrl-C while the second one works."""
    child = tmp_path / "child"
    child.write_text(CHILD)
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    out, said = tmp_path / "out", []
    (out / "cells" / "level=huge").mkdir(parents=True)
    log = out / "cells" / "level=none" / "seed-0" / "log.txt"

    def say(text):
        said.append(text)
        if "exit code 3" in text:
            while not (log.is_file() and "ready" in log.read_text()):
                time.sleep(0.05)
            raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        running.run(studies.read(write(tmp_path, settings={"host": "x"})), out, at_once=2, say=say)
    assert time.monotonic() - begun < 30
    assert log.read_text() == "ready\ninterrupted\n"
    assert said[1] == "no cells of this study, left alone: level=huge"
    assert "level=large, seed 0: failed with exit code 3: nothing was printed" in said[2]


def test_a_tilde_is_the_home_folder_for_a_study_too(tmp_path, monkeypatch):
    """The children expand it: what the study reads must be what they wrote."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(running, "run", lambda study, out, **_: seen.append((study.name, out)) or [])
    monkeypatch.setattr(results, "write", lambda study, out: ("", []))
    write(tmp_path)
    seen = []
    assert petx(["study", "~/mine.yaml", "--output_dir=~/out"]) == 0
    assert seen == [("mine", tmp_path / "out")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_study_ends_by_a_signal_as_by_an_interruption(tmp_path, monkeypatch, capsys, number, usual_signals):
    before = signal.getsignal(number)
    monkeypatch.setattr(running, "run", lambda *_, **__: os.kill(os.getpid(), number) or time.sleep(30))
    assert petx(["study", write(tmp_path), "--output_dir", str(tmp_path / "out")]) == 128 + number
    assert f"Stopped by {number.name}. What was finished is in " in capsys.readouterr().out
    assert signal.getsignal(number) is before


def test_two_studies_do_not_share_a_folder(tmp_path):
    with held(tmp_path, "output_dir"), pytest.raises(UserError, match="output_dir .* is in use"):
        running.run(studies.read(write(tmp_path)), tmp_path, at_once=1, say=print)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_damaged_notes_of_a_cell_are_named(tmp_path, content):
    study, folder = studies.read(write(tmp_path)), tmp_path / "out" / "cells" / "level=none" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(content)
    (folder / "settings.json").write_text(content)
    with pytest.raises(UserError, match=r"level=none/seed-0/settings\.json is damaged.*; remove .* to run it anew"):
        running.run(study, tmp_path / "out", at_once=1, say=print)
    assert results.collect(study, tmp_path / "out")["missing"]


def test_a_cells_folder_lies_below_its_study(tmp_path):
    for name in ("..", ".", "../x"):
        (cell,) = studies.read(write(tmp_path, axes=None, cells={name: {}})).cells
        assert not cell.folder.startswith(".") and "/" not in cell.folder


def test_a_run_that_does_not_reproduce_its_score_is_not_finished(tmp_path, monkeypatch):
    """``petx train`` then writes its report and exits with 1."""
    child = tmp_path / "child"
    script = (
        """for last; do :; done; echo '{"arms": {"vlpet": []}}' > "$last/results.json"; echo "but 3 was recorded"; """
    )
    child.write_text(f"#!/bin/sh\n{script}exit 1\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    study, said = studies.read(write(tmp_path, settings={"host": "x", "arms": ["vlpet"]})), []
    for _ in range(2):  # it is tried again
        failed = running.run(study, tmp_path / "out", at_once=1, say=said.append)
        assert failed == ["level=large, seed 0", "level=none, seed 0"] and "2 runs, 0 finished" in said[-3]
        assert "failed with exit code 1: but 3 was recorded" in said[-1]
    assert results.collect(study, tmp_path / "out")["missing"] == failed


# ---- results ----


def test_mean_and_spread_over_seeds(tmp_path):
    study = studies.read(write(tmp_path, seeds=[0, 1]))
    scores = {"large": (50.0, 54.0), "none": (40.0,)}
    for level, values in scores.items():
        for seed, value in enumerate(values):
            record = dict(seed=seed, trainable=10, total=40, steps=3, seconds=2.0)
            record |= dict(test={"accuracy": value, "colour": 1.0}, dev={"accuracy": value - 1})
            folder = tmp_path / "cells" / f"level={level}" / f"seed-{seed}"
            folder.mkdir(parents=True)
            arms = {arm: [record] for arm in study.cells[0].settings.all_arms}
            (folder / "results.json").write_text(json.dumps({"arms": arms, "baselines": {}}))
            (folder / "done.json").write_text("{}")
    found = results.collect(study, tmp_path)
    rows = {(row["cell"], row["arm"]): row for row in found["rows"]}
    assert rows["level=large", "vlpet"]["test"] == {"mean": 52.0, "spread": pytest.approx(8**0.5)}
    assert rows["level=none", "vlpet"]["dev"] == {"mean": 39.0, "spread": None}
    assert found["missing"] == ["level=none, seed 1"]
    header, lines = results.table(found)
    assert header == [
        "level",
        "baseline",
        "trainable",
        "share",
        "accuracy",
        "colour",
        "dev accuracy",
        "seeds",
        "seconds",
    ]
    line = next(line for line in lines if line[:2] == ["large", "vlpet"])
    assert line == ["large", "vlpet", "10", "25.00 %", "52.0 ± 2.8", "1.0 ± 0.0", "51.0 ± 2.8", "2", "2"]
    with pytest.raises(UserError, match="metric 'cider' is not a score of cell level=large; there are: accuracy, "):
        results.collect(dataclasses.replace(study, metric="cider"), tmp_path)


def test_values_as_text():
    assert [plan.written(value) for value in ([], ["a", "b"], False, True, 3, "x")] == [
        "none",
        "a+b",
        "off",
        "on",
        "3",
        "x",
    ]
