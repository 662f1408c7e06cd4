"""``--dry-run``: what would be trained, on what and for how long, without training or writing."""

import pytest

from petx.cli import main as petx
from petx.train import petal, vlpet
from petx.train.dry_run import _short
from tests.fixtures import image_text, instruct_blip


def said(method, settings, capsys):
    settings.dry_run = True
    assert method.run(settings) == 0
    return capsys.readouterr().out


def test_vlpet_on_four_tasks(own, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "settings.json").write_text("{}")
    shown = said(vlpet, image_text.settings(own, out, arms=["frozen", "vlpet"]), capsys)
    assert [file.name for file in out.iterdir()] == ["settings.json"]
    assert f"refused   output_dir {out} already holds a run: add --resume" in shown
    # Batches of the four tasks in an epoch: 3 of VQA, 4 of GQA, 3 of NLVR2, 2 of captions.
    assert "vqa: 10 examples to train on, 10 dev, 10 test; batches of 4, 3 an epoch; metric vqa" in shown
    assert "steps     28, 2.00 epochs of 14; 3 to warm up, then linear decay" in shown
    assert "arm       frozen: 0 of " in shown and "learning rate 0.001, 1 seed" in shown
    assert "first example of nlvr, test: id 0, image COCO_" in shown
    assert "  read    vqa : what color is it ? </s>" in shown
    assert "visual_features [1, 8, 8]" in shown  # two images of four tokens


def test_petal_on_pictures(tmp_path, capsys):
    instruct_blip.write_host(tmp_path / "host")
    instruct_blip.write_data(tmp_path / "data")
    shown = said(petal, instruct_blip.settings(tmp_path, tmp_path / "out"), capsys)
    assert "host      InstructBLIP, " in shown and "then cosine-by-epoch decay" in shown
    assert "<image> <image> <image> question what color is it ? short answer" in shown
    assert "  answer  red </s>" in shown and "known   red (x 3)" in shown and "pixel_values [1, 3, 32, 32]" in shown
    assert not (tmp_path / "out").exists() and "refused" not in shown


def test_what_training_would_refuse_is_refused(own, tmp_path, capsys):
    command = ["train", "vlpet", "--dry-run", "--preset", "paper-bart-image", "--data_dir", str(own / "data")]
    command += ["--host", str(own / "bart"), "--output_dir", str(tmp_path / "out")]
    assert petx(command) == 2
    assert "features are [9, 8], of width 8; wanted [V, 2048]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text, wanted", [("<i><i><i><i> a a", "<i> (x 4) a a"), ("word " * 3, "word word word")])
def test_places_of_an_image_are_counted(text, wanted):
    assert _short(text) == wanted
