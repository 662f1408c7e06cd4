"""Hosts that embed images and captions: batches, whole runs, and what they refuse."""

import json
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from petx import hosts
from petx.cli import main as petx
from petx.errors import UserError
from petx.hosts._retrieval import bare, head_modules, similarities
from petx.models import InstructBlip
from petx.train import answering, heads, petal, tuned, vlpet
from petx.train.petal import arguments as petal_arguments
from petx.train.run import Run
from tests.fixtures import image_text, instruct_blip, tiny_hosts

WORDS = [f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in ("thing", "something", "dark")]
COLOURS = ("red", "lime", "blue", "yellow", "cyan", "magenta", "white", "black", "gray")
PLAIN = petal_arguments.checked({"steps": 1})
SPLITS = {"coco_retrieval": {"train": ["train"], "dev": ["val"], "test": ["val"]}}


def write_data(folder):
    """Nine images, each told by two words of its own, as pictures and as features; every one in both splits."""
    (folder / "images").mkdir(parents=True)
    (folder / "features").mkdir()
    draw, entries = np.random.default_rng(0), []
    for i, words in enumerate(WORDS):
        Image.new("RGB", (32, 32), COLOURS[i]).save(folder / "images" / f"{i}.png")
        with h5py.File(folder / "features" / f"{i}.h5", "w") as file:
            file[f"{i}/features"] = draw.normal(size=(4, image_text.WIDTH)).astype(np.float32)
        for split in ("train", "val"):
            captions = [{"raw": words}, {"raw": f"a {words}"}]
            entries.append({"filename": f"{i}.png", "cocoid": i, "split": split, "sentences": captions})
    (folder / "COCO").mkdir()
    (folder / "COCO" / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieval")
    write_data(folder / "data")
    image_text.write_host(folder / "bart")
    instruct_blip.write_host(folder / "host")
    instruct_blip.write_other_host(folder / "blip2-itm", "blip2-itm")
    instruct_blip.write_other_host(folder / "blip2-t5", "blip2-t5")
    return folder


def settings_of(place, method, out, host=None, **more):
    given = dict(tasks=["coco_retrieval"], splits=SPLITS, retrieval_width=8, rerank=3, batch_size=6, batch_sizes={})
    given |= dict(host=str(place / (host or {"vlpet": "bart", "petal": "host"}[method])), eval_every=1000) | more
    if method == "vlpet":
        return image_text.settings(place, out, dropout=0.0, **given)
    of_texts = () if set(given["tasks"]) - set(SPLITS) else petal_arguments.Settings.of_texts  # of the preset
    defaults = {field: getattr(PLAIN, field) for field in of_texts}
    given = defaults | dict(max_target={}, context="off", adapter_dropout=0.0, schedule="linear") | given
    return instruct_blip.settings(place, out, **given)


RECIPES = {"vlpet": vlpet, "petal": petal}
KINDS = [("vlpet", None), ("petal", None), ("petal", "blip2-itm")]


def prepared(place, method, host, out="unused", **more):
    run = Run(RECIPES[method].RECIPE, settings_of(place, method, out, host, **more))
    run.prepare()
    run.load_data()
    torch.manual_seed(0)
    if run.host.in_place:
        return run, hosts.load(run.host, run.settings.host, run.settings)
    return run, run.host.pretrained(run.settings, run.data.tokenizer).eval()


# ---- batches ----


@pytest.mark.parametrize("method, kind", KINDS)
def test_a_batch_is_the_sum_of_its_pairs(place, method, kind):
    """Padding of captions changes no vector and no logit; an image does not depend on the captions beside it."""
    run, model = prepared(place, method, kind)
    host, task = hosts.bound(model, run.data.tokenizer), run.data.test[0]
    items = [task[i] | task.caption(text) for i, text in enumerate(["red", "a green something", "blue dark thing"])]
    batch = host.batch(items)
    assert batch["same"].tolist() == np.eye(3, dtype=bool).tolist() and batch["loss_over"] == "retrieval"

    @torch.no_grad()
    def of(batch):
        seen = host.seen(model, batch)
        return host.embed_images(model, seen), host.embed_texts(model, batch), host.match(model, seen, batch)

    together, alone = of(batch), [of(host.batch([item])) for item in items]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-4, atol=1e-5)
    images, texts, logits = together
    assert images.shape[::2] == (3, run.settings.retrieval_width if kind is None else 16) and logits.shape == (3, 2)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(images.shape[:2]))
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(3))
    assert similarities(images, texts).unique().numel() == 9  # neither side is lost


def test_blip2_is_what_transformers_computes(place):
    from transformers import Blip2ForImageTextRetrieval

    run, model = prepared(place, "petal", "blip2-itm")
    host, task = hosts.bound(model, run.data.tokenizer), run.data.test[0]
    batch = host.batch([task[0], task[1]])
    released = Blip2ForImageTextRetrieval.from_pretrained(place / "blip2-itm").eval()
    count = released.config.num_query_tokens
    image_tokens = torch.full((2, count), released.config.image_token_index)
    inputs = {"pixel_values": batch["pixel_values"], "input_ids": torch.cat([image_tokens, batch["input_ids"]], 1)}
    inputs["attention_mask"] = torch.cat([torch.ones_like(image_tokens), batch["attention_mask"]], 1)
    with torch.no_grad():
        seen = host.seen(model, batch)
        found = similarities(host.embed_images(model, seen), host.embed_texts(model, batch))
        matched = host.match(model, seen, batch)
        wanted = released(**inputs, use_image_text_matching_head=True).logits_per_image
        torch.testing.assert_close(matched, wanted)
        torch.testing.assert_close(found, released(**inputs).logits_per_image)


@pytest.mark.parametrize("kind", ["host", "blip2-itm"])
def test_what_a_checkpoint_lacks_begins_as_new(place, kind, caplog):
    _, model = prepared(place, "petal", kind)
    assert model.temperature.log_scale.item() == pytest.approx(np.log(1 / 0.07))
    assert "MISSING" not in caplog.text
    if kind == "host":
        limit = model.config.qformer_config.hidden_size**-0.5  # of torch's linear layers
        largest = model.vision_projection.weight.abs().max().item()
        assert 0.9 * limit < largest <= limit and model.itm_head.weight.isfinite().all()


@pytest.mark.parametrize("kind", ["vl_bart", "vl_t5"])
def test_a_caption_is_the_encoders_mean_over_its_tokens(kind):
    model = tiny_hosts.make_host(kind, retrieval_width=6)
    ids, mask = torch.tensor([[5, 6, 7], [8, 9, 1]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.no_grad():
        states = model.get_encoder()(input_ids=ids[1:, :2]).last_hidden_state.mean(1)
        wanted = torch.nn.functional.normalize(model.text_projection(states), dim=-1)
        torch.testing.assert_close(model.embed_texts(ids, mask)[1:], wanted, rtol=1e-4, atol=1e-5)
    assert not hasattr(tiny_hosts.make_host(kind), "temperature")  # nothing is added unless it is asked for


def test_a_host_in_half_precision_embeds_in_single(place):
    run, model = prepared(place, "petal", None, dtype="bfloat16")
    host, task = hosts.bound(model, run.data.tokenizer), run.data.test[0]
    batch = host.batch([task[0], task[1]])
    with torch.no_grad():
        assert host.embed_images(model, host.seen(model, batch)).dtype == torch.float32
        assert host.retrieval_loss(model, batch).isfinite()


# ---- runs ----


@pytest.mark.slow
@pytest.mark.parametrize("method, kind", KINDS)
def test_a_host_learns_to_rank_and_gives_the_same_again(place, tmp_path, capsys, method, kind):
    more = dict(arms=[method], epochs=60 if kind else 30, lr=3e-2, warmup=0.1)  # after 30, BLIP-2 is at 71
    settings = settings_of(place, method, tmp_path / "out", kind, **more)
    assert RECIPES[method].run(settings) == 0
    shown = capsys.readouterr().out
    assert "the same to the digit" in shown
    arms = json.loads((tmp_path / "out" / "results.json").read_text())["arms"]
    for (record,) in arms.values():
        assert set(record["test"]) == {"mean recall", *(f"{way} r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))}
        assert record["test"]["mean recall"] > 75, record["test"]  # of nine images by chance 50
    folder = tmp_path / "out" / method / "seed-42"
    written = folder / "predictions" / "test-coco_retrieval.jsonl"
    assert petx(["score", str(written)]) == 0
    assert f"i2t r1       {arms[method][0]['test']['i2t r1']:.4f}" in capsys.readouterr().out
    assert petx(["eval", "--adapter", str(folder / "tuned"), "--num_beams", "2"]) == 2
    assert "--num_beams is for texts that are generated" in capsys.readouterr().err
    loaded = tuned.load(folder / "tuned")
    assert set(head_modules(loaded.model)) >= {"vision_projection", "text_projection", "temperature"}
    (folder / "tuned" / heads.HEADS).unlink()
    with pytest.raises(UserError, match=r"heads\.safetensors is damaged or cannot be read"):
        tuned.load(folder / "tuned")


@pytest.mark.slow
def test_retrieval_beside_another_task(place, tmp_path):
    splits = SPLITS | {"caption": SPLITS["coco_retrieval"]}
    more = dict(tasks=["coco_retrieval", "caption"], splits=splits, arms=["petal", "lora", "adapter"], epochs=1)
    assert petal.run(settings_of(place, "petal", tmp_path / "out", **more)) == 0
    record = json.loads((tmp_path / "out" / "petal" / "seed-42" / "result.json").read_text())
    assert {"average", "coco_retrieval mean recall", "caption cider"} <= set(record["test"])


@pytest.mark.slow
def test_videos_are_ranked(place, tmp_path):
    folder = tmp_path / "data"
    (folder / "msrvtt").mkdir(parents=True)
    (folder / "vis_features" / "msrvtt" / "clip-vit").mkdir(parents=True)
    rows = []
    for i, words in enumerate(WORDS):
        values = np.random.default_rng(i).normal(size=(3 + i, 6)).astype(np.float32)
        np.savez(folder / "vis_features" / "msrvtt" / "clip-vit" / f"video{i}.npz", features=values)
        rows.append(json.dumps({"clip_name": f"video{i}", "caption": words}))
    for split in ("train", "test"):
        (folder / "msrvtt" / f"{split}.jsonl").write_text("\n".join(rows))
    splits = {"msrvtt_retrieval": {"train": ["train"], "dev": ["test"], "test": ["test"]}}
    more = dict(data="video-text", data_dir=str(folder), tasks=["msrvtt_retrieval"], splits=splits, feature_width=6)
    assert vlpet.run(settings_of(place, "vlpet", tmp_path / "out", arms=["vlpet"], epochs=1, **more)) == 0
    written = tmp_path / "out" / "vlpet" / "seed-42" / "predictions" / "test-msrvtt_retrieval.jsonl"
    assert json.loads(written.read_text().splitlines()[0])["image_id"] == "video0"


def trained_by(place, method, arm):
    run, model = prepared(place, method, None)
    built = heads.built(run.baseline(arm), run.host, model, run.settings)
    return {name for name, p in built.named_parameters() if p.requires_grad}, bare(built)


def test_heads_are_trained_in_every_tuned_row(place):
    for method, arms in (("vlpet", ["vlpet", "bitfit", "prompt"]), ("petal", ["petal", "head", "full"])):
        for arm in arms:
            names, model = trained_by(place, method, arm)
            for name, module in head_modules(model).items():
                for part, _ in module.named_parameters():
                    assert any(one.endswith(f"{name}.{part}") for one in names), (arm, name)
    assert not trained_by(place, "vlpet", "frozen")[0]
    names, _ = trained_by(place, "petal", "full")
    assert "qformer.encoder.layer.1.output.dense.weight" in names  # by which a caption leaves the Q-Former


@pytest.mark.parametrize("kind", ["vl_bart", "vl_t5"])
def test_which_loss_teaches_what(place, kind):
    """Encoder and projections learn by the contrastive loss, the decoder by matching alone."""
    model = tiny_hosts.make_host(kind, retrieval_width=6)
    tokenizer = hosts.find("vl_bart").tokenizers(place / "bart")
    host = hosts.find(kind)(model.config, tokenizer)
    draw = torch.Generator().manual_seed(0)
    items = []
    for i, words in enumerate(WORDS[:4]):
        visual = {
            "visual_features": torch.randn(5, tiny_hosts.VISUAL_WIDTH, generator=draw),
            "boxes": torch.zeros(5, 4),
        }
        visual |= {
            "image_ids": torch.zeros(5, dtype=torch.long),
            "prompt_ids": torch.tensor(tokenizer("a")["input_ids"]),
        }
        of = {"image": (i,), "loss": "retrieval", "input_ids": torch.tensor(tokenizer(words)["input_ids"])}
        items.append(visual | of)
    for matching in (0.0, 1.0):
        model.zero_grad()
        host.retrieval_loss(model, host.batch([item | {"matching": matching} for item in items])).backward()
        learns = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        for name in ("vision_projection.weight", "text_projection.weight", "temperature.log_scale"):
            assert name in learns
        assert any("encoder." in name and "att" in name.lower() for name in learns)
        assert any("decoder." in name and "embed" not in name for name in learns) == bool(matching)


def test_temperature_does_not_decay(place, tmp_path):
    run, model = prepared(place, "vlpet", None)
    built = heads.built(run.baseline("full"), run.host, model, run.settings)
    args = run.training_arguments(tmp_path, steps=1, lr=1.0, seed=0)
    trainer = run.recipe.trainer(
        built, args, run.data.tokenizer, run.data.train, [4], settings_of(place, "vlpet", tmp_path, decay="clean")
    )
    decayed = trainer.get_decay_parameter_names(built)
    assert "vision_projection.weight" in decayed and "temperature.log_scale" not in decayed


def test_without_matching_nothing_ranks_again(place):
    run, model = prepared(place, "vlpet", None, matching=0.0)
    task = run.data.train[0]
    host = hosts.bound(model, run.data.tokenizer)
    assert task.rerank == 0 and host.batch([task[0], task[1]])["matching"] == 0
    host.match = None
    assert host.retrieval_loss(model, host.batch([task[0], task[2]])).isfinite()


def test_a_training_that_diverged_is_told_in_words(place):
    run, model = prepared(place, "vlpet", None)
    task, host = run.data.train[0], hosts.bound(model, run.data.tokenizer)
    with torch.no_grad():
        model.text_projection.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="similarities of a batch's images and captions are not finite"):
        host.retrieval_loss(model, host.batch([task[0], task[2]]))


def test_dry_run_shows_a_pair(place, tmp_path, capsys):
    for method, read in (("vlpet", "retrieval : red thing </s>"), ("petal", "<s> red thing </s>")):
        settings = settings_of(place, method, tmp_path / "out", arms=[method])
        settings.dry_run = True
        assert RECIPES[method].run(settings) == 0
        shown = capsys.readouterr().out
        assert "coco_retrieval: 18 examples to train on, 9 dev, 9 test; batches of 6, 3 an epoch" in shown
        assert (
            "metric retrieval" in shown and "ranked  9 images and 18 captions; the first 3 again by matching" in shown
        )
        assert "first pair of coco_retrieval, train: id 0, image 0" in shown and "temperature" not in shown
        assert read.replace("retrieval", "<unk>") in shown or read in shown


# ---- what is refused ----


@pytest.mark.parametrize(
    "method, more, message",
    [
        (
            "vlpet",
            dict(batch_size=1),
            "task coco_retrieval compares the pairs of a batch: its batch size must be at least 2",
        ),
        ("vlpet", dict(batch_sizes={"coco_retrieval": 1}), "its batch size must be at least 2"),
        ("vlpet", dict(num_beams=2), "num_beams=2: this is of texts that are generated, and coco_retrieval ranks"),
        (
            "petal",
            dict(instructions=["Question: {q}"], generation={"num_beams": 3}, targets="first"),
            r"targets='first', instructions=\['Question: {q}'\], generation={'num_beams': 3}: this is of texts",
        ),
        (
            "vlpet",
            dict(tasks=["caption"], splits={"caption": SPLITS["coco_retrieval"]}, batch_sizes={}),
            "retrieval_width=8, rerank=3: nothing reads this without a task of retrieval",
        ),
        ("petal", dict(ib="corrected"), "task coco_retrieval has no answers that ib=corrected could bound"),
        (
            "petal",
            dict(host="blip2-t5"),
            "task coco_retrieval ranks images and captions for one another, and BLIP-2 cannot",
        ),
    ],
)
def test_what_cannot_be_learnt_is_refused(place, tmp_path, method, more, message):
    with pytest.raises(UserError, match=message):
        RECIPES[method].run(settings_of(place, method, tmp_path / "out", **more))


def test_blip2_for_retrieval_generates_nothing(place, tmp_path):
    more = dict(host="blip2-itm", tasks=["caption"], splits={"caption": SPLITS["coco_retrieval"]})
    with pytest.raises(UserError, match="is BLIP-2 for retrieval and generates nothing, as caption needs"):
        petal.run(settings_of(place, "petal", tmp_path / "out", **more))


def test_what_was_trained_to_rank_answers_no_questions(place):
    loaded = SimpleNamespace(settings=settings_of(place, "vlpet", "unused"), model=None, tokenizer=None)
    with pytest.raises(UserError, match="trained to rank images and captions for one another; it answers no questions"):
        answering.answer(loaded, "picture.png", "what is it?")


def test_several_processes_are_refused(place, tmp_path, monkeypatch):
    from petx.train import recipe

    monkeypatch.setattr(recipe, "PartialState", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(UserError, match="compares all pairs of a batch, which one process has: run a single one"):
        Run(vlpet.RECIPE, settings_of(place, "vlpet", tmp_path / "out")).prepare()


def test_heads_of_another_width_are_named(place, tmp_path):
    _, model = prepared(place, "petal", None)
    heads.save(model, tmp_path)
    run, other = prepared(place, "petal", None, retrieval_width=5)
    assert isinstance(other, InstructBlip)
    with pytest.raises(
        UserError, match=r"heads\.safetensors: vision_projection\.weight is \[8, 32\], wanted \[5, 32\]"
    ):
        heads.load(other, tmp_path)
