"""``petx train vlpet --host``: Florence-2, tiny and of random weights, on image files."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import processors
from transformers import (
    BartConfig,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    Florence2VisionConfig,
    PreTrainedTokenizerFast,
)

from petx import hosts
from petx.cli import main as petx
from petx.data.tokenizers import word_tokenizer
from petx.errors import UserError
from petx.train import tuned, vlpet
from petx.train.run import Run
from petx.train.vlpet import arguments
from petx.tuners.vlpet import fused
from tests.fixtures import instruct_blip as fixture
from tests.fixtures.padding import assert_padding_changes_nothing

WIDTH, PLACES = 16, 2 * 2 + 1  # of the language model; tokens of an image of 32 x 32: four places and their mean


def write_host(folder):
    """A Florence-2 of a few thousand parameters, with its processor, as a hub model would lie on disk."""
    words = word_tokenizer(["vqa: caption: what color is it? a the something thing dark", *fixture.COLOURS], 0)
    ends = [("<s>", words.bos_token_id), ("</s>", words.eos_token_id)]
    backend = words.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {name: getattr(words, name) for name in ("bos_token", "pad_token", "eos_token", "unk_token")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, extra_special_tokens={"image_token": "<image>"}, **names
    )
    text = BartConfig(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=64,
        init_std=0.2,
        dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
    )
    vision = Florence2VisionConfig(
        depths=(1, 1),
        patch_size=(7, 3),
        patch_stride=(4, 4),
        patch_padding=(3, 1),
        patch_prenorm=(False, True),
        embed_dim=(8, 16),
        num_heads=(2, 2),
        num_groups=(2, 2),
        window_size=2,
        drop_path_rate=0.0,
        projection_dim=WIDTH,
        initializer_range=0.2,
    )
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=tokenizer.image_token_id)
    torch.manual_seed(0)
    Florence2ForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False, image_seq_length=PLACES)
    Florence2Processor(images, tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder with the host, and images of one colour with questions and captions."""
    folder = tmp_path_factory.mktemp("florence2")
    write_host(folder / "host")
    fixture.write_data(folder / "data")
    return folder


def settings(place, out, **more):
    small = dict(data_dir=str(place / "data"), host=str(place / "host"), output_dir=str(out), tasks=["vqa"])
    small |= dict(splits={"vqa": fixture.SPLITS["vqa"]}, batch_sizes={}, batch_size=4, eval_batch_size=8, num_beams=1)
    small |= dict(rank=4, gate_rank=4, decoder_rank=4, heads=2, epochs=2, lr=1e-2, eval_every=4, save_every=4)
    small |= dict(lora_rank=None, lora_alpha=None)
    return arguments.checked(arguments.read_preset("paper-bart-image") | small | dict(log_every=2) | more)


@pytest.mark.slow
def test_it_is_tuned_in_every_way_that_fits(place, tmp_path, capsys):
    arms = ["frozen", "vlpet", "lora", "full", "bitfit"]
    assert vlpet.run(settings(place, tmp_path / "out", arms=arms)) == 0
    assert "the same to the digit" in capsys.readouterr().out
    records = json.loads((tmp_path / "out" / "results.json").read_text())["arms"]
    trained = {arm: runs[0]["trainable"] for arm, runs in records.items()}
    d, r = WIDTH, 4
    sites = 2 * 2 * (2 * (r * d + r + r * d + d)) + 2 * (r * d + r + r * d + d)  # adapters with gates; value adapters
    assert trained["vlpet"] == sites + 2 * d * (2 * 2 + 1)  # and the encoder's norms, the embeddings' too
    assert trained["frozen"] == 0 and trained["lora"] == pytest.approx(trained["vlpet"], rel=0.2)
    assert trained["bitfit"] < trained["full"] < records["full"][0]["total"]  # the image encoder stays
    folder = tmp_path / "out" / "vlpet" / "seed-42" / "tuned"
    saved = load_file(folder / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == trained["vlpet"]
    assert all("language_model" in name for name in saved)
    image = str(place / "data" / "images" / "0.png")
    command = ["predict", image, "what color is it?", "--adapter", str(folder), "--output", str(tmp_path / "a.png")]
    assert petx(command) == 0 and (tmp_path / "a.png").is_file()


@pytest.mark.slow
def test_it_learns_colours(place, tmp_path):
    """VL-PET brings the loss down, but a frozen random BART has no good output for any word; full tuning learns all."""
    more = dict(epochs=30, eval_every=1000, save_every=1000, arms=["vlpet", "full"], lr_full=5e-3)
    assert vlpet.run(settings(place, tmp_path / "out", **more)) == 0
    arms = json.loads((tmp_path / "out" / "results.json").read_text())["arms"]
    records = {arm: runs[0] for arm, runs in arms.items()}
    losses = {arm: [loss for _, loss in record["curve"]["loss"]] for arm, record in records.items()}
    assert losses["vlpet"][-1] < losses["vlpet"][0] - 0.5 and losses["full"][-1] < 0.5, losses
    assert records["full"]["test"]["accuracy"] == pytest.approx(200 / 3)  # the most that three annotators give


@pytest.mark.slow
def test_its_encoder_layers_run_fused_and_its_values_together(place, tmp_path):
    assert vlpet.run(settings(place, tmp_path / "out", epochs=1)) == 0
    loaded = tuned.load(tmp_path / "out" / "vlpet" / "seed-42" / "tuned")
    tuner = loaded.model.base_model
    assert loaded.host is hosts.find("florence2")
    unfused = tuner.unfused()
    assert len(unfused) == 2 and set(unfused.values()) == {None}
    assert all(isinstance(tuner.model.get_submodule(path), fused.FusedLayer) for path in unfused)
    (group,) = tuner.value_groups()
    assert group.obstacle() is None


def test_a_batch_is_the_sum_of_its_samples(place):
    """Padding of questions of different lengths changes nothing, neither in training nor in generating by beams."""
    run = Run(vlpet.RECIPE, settings(place, "unused"))
    run.prepare()
    run.load_data()
    model = run.host.load(run.settings.host)
    image = assert_padding_changes_nothing(run, model)["input_ids"][:, :PLACES]
    assert (image == model.config.image_token_id).all()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(arms=["prompt"]), "arm prompt needs a place for prompt tokens in its encoder, and Florence-2 has none"),
        (dict(arms=["projector"]), "arm projector needs a projector that is new to it, and Florence-2 has none"),
        (
            dict(data="video-text", tasks=["tvqa"], splits={"tvqa": {s: ["a"] for s in ("train", "dev", "test")}}),
            "videos",
        ),
        (dict(heads=3, design="up"), "VL-PET on a host of width 16: .*heads must divide features"),
    ],
)
def test_what_it_cannot_do_is_said_before_any_work(place, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        vlpet.run(settings(place, tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_pairs_of_images_are_refused(place):
    from petx.data.examples import Example
    from petx.tasks import of_kind

    host, spec = hosts.find("florence2"), of_kind("image-text", "vlpet")["nlvr"]
    with pytest.raises(UserError, match="task nlvr asks about several images at once, and Florence-2 reads one"):
        host.dataset(spec, [Example("a", ("x", "y"), (("true", 1.0),))], None, None, None, "train")
