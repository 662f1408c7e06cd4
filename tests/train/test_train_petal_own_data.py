"""``petx train petal --host``: a pretrained InstructBLIP on image files of one's own; instructions; resuming."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from petx import hosts, tasks
from petx.baselines._sizes import ESTIMATORS
from petx.cli import main as petx
from petx.data.examples import Example
from petx.data.instructions import instruction, plain
from petx.data.stores import ImageFiles
from petx.errors import UserError
from petx.hosts.instruct_blip import HOST
from petx.train import checkpoints, petal, stages, tuned
from petx.train.petal import arguments
from petx.train.run import Run
from petx.train.settings import checked
from petx.train.trainer import Progress
from petx.tuners import describe
from tests.fixtures import instruct_blip as fixture
from tests.fixtures.padding import assert_padding_changes_nothing


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    fixture.write_host(folder / "host")
    fixture.write_data(folder / "data")
    return folder


def loaded_run(settings):
    run = Run(petal.RECIPE, settings)
    run.prepare()
    run.load_data()
    return run


def make_trainer(mine, folder, *, steps=8, arm="petal", callbacks=(), **more):
    from transformers import set_seed

    run = loaded_run(fixture.settings(mine, folder, save_every=3, log_every=3, **more))
    set_seed(7)
    model = run.baseline(arm).build(run.host, run.host.load(run.settings.host, run.settings), run.settings)
    args = run.training_arguments(folder, steps=steps, lr=1e-2, seed=7)
    trainer = run.trainer(model, args, run.data.train, [run.settings.batch_size] * len(run.data.train), run.data.dev)
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


@pytest.mark.parametrize("name, beams", [("flickr30k", 5), ("gqa", 1)])
def test_a_task_is_searched_with_its_own_beams(name, beams):
    settings = checked(arguments.Settings, dict(steps=1))
    task = HOST.dataset(tasks.find(name), [], None, SimpleNamespace(text=None), settings, "test")
    assert task.num_beams == beams and task.predictions is tasks.find(name).predictions


def test_the_token_of_an_image_is_refused_where_none_is(mine, tmp_path):
    settings = fixture.settings(mine, tmp_path / "out")
    tokenizer = HOST.pretrained_tokenizers(settings)

    def made(text="what?", answer="red", template="{q}"):
        settings.instructions, settings.eval_instructions = [template], []
        example = Example(text, ("0",), ((answer, 1.0),), id=7)
        return HOST.dataset(tasks.find("vqa"), [example], None, tokenizer, settings, "train")

    assert len(made(answer="<image>")) == 1  # of an encoder-decoder
    with pytest.raises(UserError, match="task vqa: example 7 has <image>, which stands for an image, in 'a<image>'"):
        made("a<image>")
    with pytest.raises(UserError, match="instructions: <image>, the place of the image, is put in front of it, got '<"):
        made(template="<image> {q}")


@pytest.mark.slow
@pytest.mark.parametrize("language_model", ["t5", "llama"])
def test_a_pretrained_host_learns_colours(tmp_path, language_model):
    fixture.write_host(tmp_path / "host", language_model)
    fixture.write_data(tmp_path / "data")
    more = dict(arms=["petal"], epochs=12, lr=1e-2, schedule="linear", adapter_dropout=0.0, eval_every=1000)
    settings = fixture.settings(tmp_path, tmp_path / "out", **more)
    assert petal.run(settings) == 0
    curve = json.loads((tmp_path / "out" / "petal" / "seed-42" / "result.json").read_text())["curve"]["loss"]
    assert curve[-1][1] < curve[0][1] - 0.2, curve
    assert not (tmp_path / "out" / "host").exists()  # it is used where it lies


@pytest.mark.slow
def test_tasks_of_questions_and_captions(mine, tmp_path, capsys, monkeypatch):
    own = {"caption": ["a photo of"]}
    more = dict(tasks=["vqa", "caption"], metrics={"vqa": "matches"}, arms=["petal"], epochs=1, task_instructions=own)
    settings = fixture.settings(mine, tmp_path / "out", dtype="bfloat16", **more)
    settings.host, settings.data_dir = "host", "data"
    monkeypatch.chdir(mine)
    assert petal.run(settings) == 0
    monkeypatch.chdir(tmp_path)
    scores = json.loads((tmp_path / "out" / "petal" / "seed-42" / "result.json").read_text())["test"]
    assert {"average", "vqa accuracy", "caption cider"} <= set(scores)
    folder = str(tmp_path / "out" / "petal" / "seed-42" / "tuned")
    capsys.readouterr()
    assert petx(["eval", "--adapter", folder]) == 2
    assert "data_dir must be the folder of the data, got 'data'" in capsys.readouterr().err
    assert petx(["eval", "--adapter", folder, "--features_dir", "x"]) == 2
    assert "--features_dir is no setting of petx train petal, got 'x'" in capsys.readouterr().err
    moved = ["--data_dir", str(mine / "data")]
    assert petx(["eval", "--adapter", folder, *moved, "--images_dir", str(mine / "data" / "images")]) == 0
    assert f"average      {scores['average']:.4f}" in capsys.readouterr().out
    written = tmp_path / "out" / "petal" / "seed-42"
    for name, main in (("vqa.json", "accuracy"), ("caption.json", "cider")):
        assert (written / "eval" / f"test-{name}").read_text() == (written / "predictions" / f"test-{name}").read_text()
        assert petx(["score", str(written / "predictions" / f"test-{name}"), *moved]) == 0
        assert f"{main:<12} {scores[f'{name[:-5]} {main}']:.4f}" in capsys.readouterr().out
    image = str(mine / "data" / "images" / "0.png")
    assert petx(["predict", image, "what color is it?", "--adapter", folder, "--output", str(tmp_path / "a.png")]) == 0
    assert tuned.load(folder).model.get_base_model().language_model.dtype == torch.bfloat16


@pytest.mark.slow
def test_easy_vqa_on_a_host_that_reads_pixels(mine, petx_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    small = "--preset smoke --train_images 8 --dev_images 2 --test_images 2 --rank 4 --experts 2 --steps 2 --arms petal"
    command = [*small.split(), "--host", str(mine / "host"), "--output_dir", str(tmp_path / "out")]
    assert petx(["train", "petal", *command]) == 0
    assert (tmp_path / "out" / "results.md").is_file()


# ---- resuming ----


class StopAt(Progress):
    """Ctrl-C in the middle of training."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_resumed_training_ends_in_the_same_bits(mine, tmp_path):
    """Dropout, the information bottleneck's estimators and the schedule go on where they were."""
    more = dict(ib="authors", ib_learnable=True)
    straight = make_trainer(mine, tmp_path / "straight", **more)
    stages.train(straight)
    wanted = checkpoints.trainable_state(straight.model)
    assert any(name.startswith(ESTIMATORS) for name in wanted)
    told = describe(straight.model)
    assert "fused: " in told and "not fused" not in told
    with pytest.raises(KeyboardInterrupt):
        stages.train(make_trainer(mine, tmp_path / "resumed", callbacks=[StopAt(5)], **more))
    assert checkpoints.last_whole(tmp_path / "resumed").name == "checkpoint-3"
    resumed = make_trainer(mine, tmp_path / "resumed", **more)
    torch.manual_seed(99)
    stages.train(resumed)
    got = checkpoints.trainable_state(resumed.model)
    assert got.keys() == wanted.keys() and all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert stages.curve(resumed.state.log_history) == stages.curve(straight.state.log_history)
    frozen = {name for name, p in resumed.model.named_parameters() if not p.requires_grad}
    assert not frozen & load_file(tmp_path / "resumed" / "checkpoint-8" / checkpoints.TENSORS).keys()


@pytest.mark.slow
def test_an_interrupted_run_goes_on(mine, tmp_path, monkeypatch):
    more = dict(arms=["petal", "adapter"], epochs=1)
    assert petal.run(fixture.settings(mine, tmp_path / "straight", **more)) == 0
    step = Progress.on_step_end

    def interrupt(self, args, state, control, **kwargs):
        if "adapter" in args.output_dir and state.global_step == 2:
            raise KeyboardInterrupt
        step(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_step_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            petal.run(fixture.settings(mine, tmp_path / "resumed", **more))
    assert petal.run(fixture.settings(mine, tmp_path / "resumed", resume=True, **more)) == 0
    for arm, name in (("petal", "adapter_model.safetensors"), ("adapter", checkpoints.TENSORS)):
        got, wanted = (load_file(tmp_path / run / arm / "seed-42" / "tuned" / name) for run in ("resumed", "straight"))
        assert got.keys() == wanted.keys() and all(torch.equal(got[key], wanted[key]) for key in wanted)


# ---- instructions, batches, optimiser ----


def test_templates():
    assert instruction("Question: {q} Short answer:", "What (is) it?") == "Question: What (is) it? Short answer:"
    assert plain("Question: What (is) it? Short answer:") == "question what is it? short answer"
    with pytest.raises(UserError, match="{q} is the only field there is"):
        instruction("{question}", "x")


@pytest.mark.parametrize("language_model", ["t5", "llama"])
def test_a_batch_is_the_sum_of_its_samples(tmp_path, language_model):
    """Padding of instructions of different lengths changes nothing, left (to generate) or right (to train)."""
    fixture.write_host(tmp_path / "host", language_model)
    fixture.write_data(tmp_path / "data")
    settings = fixture.settings(tmp_path, tmp_path / "out")
    assert_padding_changes_nothing(loaded_run(settings), HOST.load(settings.host, settings))


def test_long_instructions_lose_their_beginning(mine, tmp_path):
    task = loaded_run(fixture.settings(mine, tmp_path, max_text=4)).data.train[0]
    item = task.item(None, "what color is it? something dark")
    words = task.tokenizers.text.decode(item["input_ids"], skip_special_tokens=True)
    assert len(item["input_ids"]) == 4 and words == "dark short answer"


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["mean", "attention_score"])
def test_several_instructions_an_image(mine, tmp_path, aggregation):
    templates = ["question: {q} short answer:", "what color is the thing", "describe it"]
    settings = fixture.settings(mine, tmp_path / "out", instructions=templates, aggregation=aggregation, epochs=1)
    run_data = loaded_run(settings).data
    model = HOST.load(settings.host, settings)
    batch = hosts.bound(model, run_data.tokenizer).prompts([run_data.train[0][i] for i in range(2)])
    assert batch["qformer_input_ids"].shape[:2] == (2, 3)
    pixels, ids, mask = (batch[name] for name in ("pixel_values", "qformer_input_ids", "qformer_attention_mask"))
    with torch.no_grad():
        joined = model.get_image_features(pixels, ids, mask).pooler_output
        parts = [model.get_image_features(pixels, ids[:, i], mask[:, i]).pooler_output for i in range(3)]
    if aggregation == "mean":
        torch.testing.assert_close(joined, sum(parts) / 3)
    assert joined.shape == parts[0].shape and not torch.allclose(joined, parts[0])
    assert petal.run(settings) == 0


@pytest.mark.slow
def test_a_batch_of_one_with_the_batch_coupled_context(mine, tmp_path):
    settings = fixture.settings(mine, tmp_path / "out", batch_size=1, eval_batch_size=1, context="batch_mean", epochs=1)
    assert petal.run(settings) == 0


def test_weight_decay_groups(mine, tmp_path):
    def decayed(decay):
        trainer = make_trainer(mine, tmp_path / decay, decay=decay)
        names = set(trainer.get_decay_parameter_names(trainer.model))
        return {name: name in names for name, p in trainer.model.named_parameters() if p.requires_grad}

    paper, clean = decayed("paper"), decayed("clean")
    assert all(kept for name, kept in paper.items() if "petal_mode" in name or ".core" in name)
    assert not any(kept for name, kept in paper.items() if "scale" in name)
    assert any(paper.values()) and not any(kept for name, kept in (paper | clean).items() if name.endswith("bias"))


# ---- bad input ----


def test_a_broken_image_is_named_before_any_work(mine, tmp_path):
    import shutil

    shutil.copytree(mine, tmp_path / "mine")
    broken = tmp_path / "mine" / "data" / "images" / "4.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cannot read .*4\.png as an image"):
        petal.run(fixture.settings(tmp_path / "mine", tmp_path / "out"))
    broken.unlink()
    with pytest.raises(UserError, match="no image file .*4, nor with one of"):
        petal.run(fixture.settings(tmp_path / "mine", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    whole = (mine / "data" / "images" / "3.png").read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])  # its beginning is an image's
    with pytest.raises(UserError, match=r"cannot read .*4\.png as an image"):
        ImageFiles(broken.parent, lambda picture, **_: picture)("4")


def test_an_image_is_augmented_the_same_for_the_same_draw(mine):
    def processor(picture, return_tensors):
        return {"pixel_values": [picture]}

    noise = torch.randint(0, 256, (40, 30, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(mine / "noise.png")
    files = ImageFiles(mine, processor, "crop-flip")
    pictures = [files("noise", draw)[0].tobytes() for draw in ("0 0", "0 0", "0 1")]
    assert pictures[0] == pictures[1] != pictures[2]
    assert files("noise")[0].tobytes() == noise.tobytes()  # in evaluation


def test_unfit_hosts_are_named(mine, tmp_path):
    from transformers import BartConfig

    BartConfig().save_pretrained(tmp_path / "bart")
    with pytest.raises(UserError, match="is a 'bart' model; wanted InstructBLIP"):
        petal.run(fixture.settings(mine, tmp_path / "out", host=str(tmp_path / "bart")))
    fixture.write_host(tmp_path / "zero", zero_queries=True)
    with pytest.raises(UserError, match="query_tokens are all zero"):
        petal.run(fixture.settings(mine, tmp_path / "out", host=str(tmp_path / "zero")))
