"""``petx train --host`` on today's vision-language models, read through their own processors and chat templates."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, GenerationConfig, Phi3Config
from transformers.utils import is_torchvision_available

from petx import hosts
from petx.baselines.vlpet import vlpet_config
from petx.cli import main as petx
from petx.data.conversations import Conversations
from petx.errors import UserError
from petx.train import petal, tuned, vlpet
from petx.train.run import Run
from petx.train.vlpet import arguments
from tests.fixtures import chat_hosts, todays_vlms
from tests.fixtures import instruct_blip as fixture
from tests.fixtures.padding import assert_padding_changes_nothing

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
EVERYDAY = ("gemma3",)  # types of tokens, both ways of attention within an image
TORCHVISION = pytest.mark.skipif(not is_torchvision_available(), reason="its processor needs torchvision")


def each(everyday=EVERYDAY, but=()):
    marked = []
    for family in (one for one in chat_hosts.PROCESSORS if one not in but):
        marks = [] if family in everyday else [pytest.mark.nightly]
        marked.append(
            pytest.param(family, marks=[*marks, TORCHVISION] if family in chat_hosts.NEED_TORCHVISION else marks)
        )
    return pytest.mark.parametrize("family", marked)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """``places(family)``: a folder with a host and image files with questions; made once."""
    made = {}

    def place(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            chat_hosts.write_host(made[family] / "host", family)
            fixture.write_data(made[family] / "data")
        return made[family]

    return place


def settings(place, out, **more):
    small = dict(clean_instructions=False, instructions=["{q}"], context="off", ib="off", adapter_dropout=0.0)
    return fixture.settings(place, out, **small | more)


def vlpet_settings(place, out, **more):
    small = dict(data_dir=str(place / "data"), host=str(place / "host"), output_dir=str(out), tasks=["vqa"])
    small |= dict(splits={"vqa": fixture.SPLITS["vqa"]}, batch_sizes={}, batch_size=4, eval_batch_size=8, num_beams=1)
    small |= dict(rank=4, gate_rank=4, heads=2, epochs=2, lr=1e-2, eval_every=4, save_every=4, log_every=2)
    return arguments.checked(arguments.read_preset("chat-vqa") | small | more)


def loaded(recipe, given):
    run = Run(recipe, given)
    run.prepare()
    run.load_data()
    return run, run.host.load(given.host, given)


@each()
def test_a_batch_is_the_sum_of_its_samples(places, family):
    """Questions and answers of different lengths, padded left and right: the same losses and the same answers."""
    run, model = loaded(petal.RECIPE, settings(places(family), "unused"))
    batch = assert_padding_changes_nothing(run, model, "picture")
    reader = run.data.tokenizer
    for row, text in zip(batch["labels"], ("red</s>", "adarkthing</s>", "</s>"), strict=True):
        assert reader.decode(row[row != -100]).replace(" ", "") == text
    assert (batch["labels"] != -100).nonzero()[:, 1].min() >= batch["labels"].shape[1] - 4  # behind every prompt
    assert (batch["attention_mask"][:, 0] == 0).any()  # a shorter prompt begins later


def test_an_answer_holds_no_image(places):
    """A random model writes anything, and a second image in the answer would be looked for when it is read again."""
    run, model = loaded(petal.RECIPE, settings(places("gemma3"), "unused"))
    host, image = hosts.bound(model, run.data.tokenizer), 60
    likely = torch.tensor([5, image])
    model.lm_head.register_forward_hook(lambda _, args, logits: logits.index_fill(-1, likely, 1e3))
    prompt = host.prompts([run.data.train[0][0]])
    model.generation_config.suppress_tokens = [5]
    assert model.generate(**prompt, max_new_tokens=2)[0, -2:].tolist() == [image, image]
    assert not {5, image} & set(host.generate(model, prompt, max_new_tokens=4)[0].tolist())


def test_the_prompt_is_the_templates(places):
    run, model = loaded(petal.RECIPE, settings(places("gemma3"), "unused"))
    host = hosts.bound(model, run.data.tokenizer)
    ids = host.prompts([run.data.train[0][0]])["input_ids"][0]
    image = "<boi> <image> <image> <image> <image> <eoi>"
    assert run.data.tokenizer.decode(ids) == f"<s> user : {image} <unk> color is it ? assistant :"


def test_an_answer_ends_as_the_template_or_the_checkpoint_says(tmp_path):
    chat_hosts.write_host(tmp_path, "gemma3")
    reader = Conversations.from_pretrained(tmp_path)
    words = reader.text.get_vocab()
    end = words["</s>"]
    assert reader.answer("a red thing").tolist() == [words["a"], words["red"], words["thing"], end]
    assert reader.answer("a red thing", 3).tolist() == [words["a"], words["red"], end]
    assert reader.answer("").tolist() == [end]
    reader.processor.chat_template = chat_hosts.template("<boi>").replace("</s>", "")
    assert reader.answer("red").tolist() == [words["red"], end]  # the tokenizer's, if the template has none
    GenerationConfig(eos_token_id=[end, words["."]]).save_pretrained(tmp_path)
    reader = Conversations.from_pretrained(tmp_path)
    reader.processor.chat_template = chat_hosts.template("<boi>").replace("</s>", ".")
    assert reader.ends == (end, words["."]) and reader.answer("red").tolist() == [words["red"], words["."]]


def test_a_long_question_loses_its_beginning(places):
    run, _ = loaded(petal.RECIPE, settings(places("gemma3"), "unused", max_text=3))
    assert run.data.train[0].item(None, "what color is the dark thing")["text"] == "the dark thing"


@each((), but=["t5gemma2"])
def test_petal_trains_saves_and_predicts(places, tmp_path, family):
    assert petal.run(settings(places(family), tmp_path / "out", arms=["frozen", "petal"])) == 0
    curve = json.loads((tmp_path / "out" / "petal" / "seed-42" / "result.json").read_text())["curve"]["loss"]
    assert curve[-1][1] < curve[0][1]


@pytest.mark.slow
def test_every_row_that_fits_is_tuned_by_petals_recipe(places, tmp_path, capsys):
    arms = ["petal", "lora", "full"]
    assert petal.run(settings(places("gemma3"), tmp_path / "out", arms=arms, epochs=1)) == 0
    assert "the same to the digit" in capsys.readouterr().out
    records = json.loads((tmp_path / "out" / "results.json").read_text())["arms"]
    trained = {arm: runs[0]["trainable"] for arm, runs in records.items()}
    assert trained["lora"] == pytest.approx(trained["petal"], rel=0.4) and trained["petal"] < trained["full"]
    assert trained["full"] < records["full"][0]["total"]  # the image encoder stays
    folder = tmp_path / "out" / "petal" / "seed-42" / "tuned"
    saved = load_file(folder / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == trained["petal"]
    image = str(places("gemma3") / "data" / "images" / "0.png")
    command = ["predict", image, "what color is it?", "--adapter", str(folder), "--output", str(tmp_path / "a.png")]
    assert petx(command) == 0 and (tmp_path / "a.png").is_file()


@pytest.mark.slow
@each(("gemma3", "t5gemma2"))
def test_vlpet_trains_saves_and_predicts(places, tmp_path, capsys, family):
    """At the sites of a decoder-only model, or at those of T5Gemma 2's encoder and decoder."""
    more = dict(arms=["vlpet"], epochs=4, log_every=1)
    assert vlpet.run(vlpet_settings(places(family), tmp_path / "out", **more)) == 0
    assert "the same to the digit" in capsys.readouterr().out
    folder = tmp_path / "out" / "vlpet" / "seed-42" / "tuned"
    config = tuned.load(folder).model.peft_config["default"]
    alone = ("decoder", 2.0, "CAUSAL_LM")
    assert (config.preset, config.scale, config.task_type) == (
        ("t5gemma2", 1.0, "SEQ_2_SEQ_LM") if family == "t5gemma2" else alone
    )
    records = json.loads((tmp_path / "out" / "results.json").read_text())["arms"]
    losses = [loss for _, loss in records["vlpet"][0]["curve"]["loss"]]
    assert sum(losses[-3:]) < sum(losses[:3])
    image = str(places(family) / "data" / "images" / "0.png")
    command = ["predict", image, "what color is it?", "--adapter", str(folder), "--output", str(tmp_path / "a.png")]
    assert petx(command) == 0


@pytest.mark.parametrize("place", ["value", "key"])
def test_places_have_the_names_of_a_merged_attention_in_t5gemma2(places, place):
    given = vlpet_settings(places("gemma3"), "unused", encoder_places=["attention"], decoder_places=[place])
    config = vlpet_config(given, "t5gemma2")
    assert [site["name"] for site in config.encoder_sites] == ["attention output"]
    assert [site["name"] for site in config.decoder_sites] == [f"merged attention {place}"]


def test_an_encoder_decoder_without_a_qformer_is_left_to_vlpet(places, tmp_path):
    with pytest.raises(UserError, match="arm petal: .*it is an encoder-decoder without a Q-Former"):
        petal.run(settings(places("t5gemma2"), tmp_path / "out"))
    assert not list((tmp_path / "out").glob("petal*"))


def test_vlpets_own_host_is_left_to_petal_and_the_other_way(tmp_path):
    """LLaVA has a host of its own for PETAL; VL-PET reads it through its processor."""
    chat_hosts.write_host(tmp_path, "llava")
    assert hosts.of_checkpoint(tmp_path, "petal") is hosts.find("llava")
    found = hosts.of_checkpoint(tmp_path, "vlpet")
    assert found is hosts.find("image_text_to_text")
    model = todays_vlms.make("llava")
    assert isinstance(hosts.bound(model, found.tokenizers(tmp_path)), found)
    assert isinstance(hosts.bound(model, hosts.find("llava").tokenizers(tmp_path)), hosts.find("llava"))


@pytest.mark.parametrize(
    ("recipe", "change", "message"),
    [
        (petal, dict(ib="corrected"), "ib=corrected needs a Q-Former, and an image-text-to-text model has none"),
        (petal, dict(instructions=["{q}", "describe"]), "reads one instruction per image, got 2"),
        (petal, dict(arms=["petal", "head"]), "arm head needs a Q-Former, and an image-text-to-text model has none"),
        (vlpet, dict(level="small"), "gates by a mean over all tokens"),
        (vlpet, dict(encoder_places=["attention"]), "encoder_places=.'attention'. is for encoder-decoders"),
        (vlpet, dict(decoder_level="large"), "decoder_level='large' is for encoder-decoders"),
        (vlpet, dict(train_decoder_norms=True), "train_decoder_norms=True is for encoder-decoders"),
        (vlpet, dict(arms=["projector"]), "arm projector needs a projector that is new to it"),
        (
            vlpet,
            dict(data="video-text", tasks=["tvqa"], splits={"tvqa": {s: ["a"] for s in ("train", "dev", "test")}}),
            "its videos come as frame features",
        ),
    ],
)
def test_what_it_cannot_do_is_said_before_any_work(places, tmp_path, recipe, change, message):
    make = settings if recipe is petal else vlpet_settings
    with pytest.raises(UserError, match=message):
        recipe.run(make(places("gemma3"), tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", [petal, vlpet])
def test_a_question_with_the_images_token_is_refused(places, tmp_path, recipe):
    """The processor would look for a second image."""
    fixture.write_data(tmp_path / "data", images=3)
    path = tmp_path / "data" / "vqa" / "train.json"
    path.write_text(path.read_text().replace("What color is it?", "What <boi> is it?"))
    make = settings if recipe is petal else vlpet_settings
    with pytest.raises(UserError, match="task vqa: example 0 has <boi>, which stands for an image"):
        recipe.run(make(places("gemma3"), tmp_path / "out", data_dir=str(tmp_path / "data")))


def _without(folder, *names):
    for name in names:
        (folder / name).unlink(missing_ok=True)


def test_a_missing_processor_is_told_before_any_work(places, tmp_path):
    chat_hosts.write_host(tmp_path / "host", "gemma3")
    _without(tmp_path / "host", "processor_config.json", "preprocessor_config.json", "chat_template.jinja")
    given = settings(places("gemma3"), tmp_path / "out", host=str(tmp_path / "host"))
    with pytest.raises(UserError, match="has no processor of images and text"):
        petal.run(given)
    assert not (tmp_path / "out").exists()


def test_a_template_that_refuses_images_is_told(tmp_path):
    chat_hosts.write_host(tmp_path, "gemma3")
    reader = Conversations.from_pretrained(tmp_path)
    reader.processor.chat_template = "{{ raise_exception('text only') }}"
    with pytest.raises(UserError, match="its chat template refuses an image with a question: text only"):
        reader.rendered("what is it?")


def test_a_model_without_any_known_place_is_told_before_any_work(places, tmp_path):
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    config = todays_vlms.tiny_config("llava_next")
    config.text_config = Phi3Config(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    chat_hosts.write_host(tmp_path / "host", "llava_next")
    torch.manual_seed(0)
    todays_vlms.build(config).save_pretrained(tmp_path / "host")
    assert AutoConfig.from_pretrained(tmp_path / "host").text_config.model_type == "phi3"
    given = settings(places("gemma3"), tmp_path / "out", host=str(tmp_path / "host"))
    with pytest.raises(UserError, match=r"arm petal: .*its projections are in one: qkv_proj"):
        petal.run(given)
    assert not list((tmp_path / "out").glob("petal*"))
