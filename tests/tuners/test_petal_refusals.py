"""What the PETAL tuner refuses, and that it leaves model and configuration alone when it does."""

import subprocess
import sys

import pytest
import torch
from peft import get_peft_model
from peft.utils.peft_types import PeftType

from petx.errors import UserError
from petx.tuners import PetalConfig
from petx.tuners.petal.parts import check_that_it_can_train, new_parts
from petx.tuners.petal.places import find_places
from tests.fixtures.tiny_hosts import make_host
from tests.fixtures.tiny_vlms import make_vlm, petal

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_peft_type_has_the_member():
    assert PeftType["PETAL"] is PeftType("PETAL") is PetalConfig().peft_type and list(PeftType).count("PETAL") == 1


@pytest.mark.slow
def test_saved_configuration_is_found_by_its_type_in_a_fresh_process(tmp_path):
    PetalConfig(rank=12, core="diagonal").save_pretrained(tmp_path)
    program = (
        "import petx.tuners, sys; from peft import PeftConfig; config = PeftConfig.from_pretrained(sys.argv[1]); "
        "print(type(config).__name__, config.rank, config.core, config.towers)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.stdout == "PetalConfig 12 diagonal None\n", done.stderr


def test_presets():
    assert PetalConfig().context == "off" and PetalConfig.preset("released").context == "batch_mean"
    paper = PetalConfig.preset("paper", rank=8)
    assert (paper.core, paper.threshold, paper.expert_gate, paper.rank) == ("diagonal", "soft", "token", 8)
    with pytest.raises(UserError, match="the presets are 'released', 'paper', got 'best'"):
        PetalConfig.preset("best")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rank=0), "rank must be a positive integer, got 0"),
        (dict(rank=2.5), "rank must be a positive integer, got 2.5"),
        (dict(image_rank=0), "image_rank must be a positive integer or None, got 0"),
        (dict(image_rank=3, share_image_core=True), "with share_image_core=True image_rank must be rank=64, got 3"),
        (dict(experts=-1), "experts must be an integer that is not negative, got -1"),
        (dict(expert_rank=0), "expert_rank must be a positive integer"),
        (dict(core="square"), "core must be one of 'full', 'diagonal', got 'square'"),
        (dict(threshold="firm"), "threshold must be one of 'none', 'soft', 'hard', 'sigmoid', got 'firm'"),
        (dict(temperature=0.0), "temperature must be positive"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (dict(expert_gate="router"), "expert_gate must be one of 'uniform', 'token', 'sample'"),
        (dict(expert_scope="half"), "expert_scope must be one of 'all', 'text', 'image'"),
        (dict(expert_activation="silu"), "expert_activation must be one of"),
        (dict(expert_top_k=2), "expert_top_k must be from 1 to experts and needs expert_gate='token' or 'sample'"),
        (dict(expert_gate="token", expert_top_k=7), "expert_top_k must be from 1 to experts"),
        (dict(expert_alpha=float("nan")), "expert_alpha must be finite"),
        (dict(context="batch"), "context must be one of 'off', 'batch_mean', 'per_sample'"),
        (dict(towers="qformer"), "towers must be a list of at least one name, got 'qformer'"),
        (dict(towers=[]), r"towers must be a list of at least one name, got \[\]"),
        (dict(init_modes="zeros"), "nothing would ever train: the gradient of V contains the mode vectors"),
        (dict(threshold="soft", threshold_init=1.0), "whole core would be cut off.*no gradient passes the threshold"),
        (dict(threshold="hard", threshold_init=1.0), "whole core would be cut off while V is zero"),
        (dict(experts=0, projector="merger"), "projector='merger' says what the experts read, and there are none"),
        (dict(expert_scope="text", projector="merger"), "with expert_scope='text' the experts do not read projector="),
        (dict(expert_beta=0.0), "with expert_beta=0 the experts would never train; set experts=0 for none"),
    ],
)
def test_mistakes_in_a_configuration(options, message):
    with pytest.raises(UserError, match=message):
        PetalConfig(**options)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("instructblip-t5", dict(towers=["qform"]), r"InstructBlipFor\w+ has no tower 'qform'; query, key and value"),
        ("instructblip-t5", dict(towers=["qform"]), "linear layers are in qformer, language_model"),
        ("instructblip-t5", dict(towers=["vision_model"]), "no attention in vision_model .*in one: qkv"),
        ("instructblip-t5", dict(towers=["language_projection"]), "no attention in language_projection has query"),
        ("instructblip-t5", dict(towers=["attention"]), "the tower 'attention' could be .* give the whole path"),
        (
            "instructblip-t5",
            dict(projector="language_projection"),
            "projector='language_projection' is for models with",
        ),
        ("instructblip-t5", dict(towers=["language_model"], experts=0), "set query_transform=False"),
        ("instructblip-t5", dict(expert_scope="image"), "expert_scope='image' is for models without a Q-Former"),
        ("blip2-t5", dict(expert_scope="text"), "the experts would never train, since qformer reads no text"),
        (
            "llava",
            dict(context="batch_mean"),
            "context='batch_mean' needs query tokens, and model",
        ),
        (
            "llava",
            dict(image_rank=2),
            "image_rank=2 is for a Q-Former's cross-attention, and there is none in model.lang",
        ),
        ("llava", dict(cross_query_transform=True), "cross_query_transform=True needs query tokens"),
        ("llava", dict(expert_gate="sample"), "in a decoder these are the answer's too"),
        ("instructblip-t5", dict(modules_to_save=["qformer"]), "is adapted and belongs to modules_to_save"),
        (
            "instructblip-t5",
            dict(modules_to_save=["embeddings"]),
            "qformer.embeddings is adapted and belongs",
        ),
    ],
)
def test_mistakes_are_named_and_leave_model_and_configuration_alone(kind, options, message):
    host = make_vlm(kind)
    before = [name for name, _ in host.named_modules()]
    config = PetalConfig(rank=4, **options)
    state = {name: value for name, value in vars(config).items() if name != "base_model_name_or_path"}
    with pytest.raises(UserError, match=message):
        get_peft_model(host, config)
    assert [name for name, _ in host.named_modules()] == before and not hasattr(host, "peft_config")
    assert {name: value for name, value in vars(config).items() if name in state} == state


def test_models_that_petal_does_not_know():
    with pytest.raises(UserError, match="BartFor.* has none: it is an encoder-decoder without a Q-Former"):
        get_peft_model(make_host("bart"), PetalConfig())
    linear = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(UserError, match="has no tower 'encoder'; nothing in it has query, key and value linear layers"):
        get_peft_model(linear, PetalConfig(towers=["encoder"]))
    encoder = get_peft_model(
        make_host("bart"), PetalConfig(rank=4, towers=["encoder", "decoder"], experts=0, query_transform=False)
    )
    assert sum(p.requires_grad for p in encoder.parameters()) == 18 + 9  # modes; U, V, C of three kinds of input


def test_a_configuration_made_for_one_model_is_not_used_for_another():
    config = PetalConfig(rank=4)
    get_peft_model(make_vlm("instructblip-t5"), config)
    get_peft_model(make_vlm("instructblip-t5", seed=5), config)
    with pytest.raises(UserError, match="made for another model: .*'projections': 15.*this one.*'projections': 18"):
        get_peft_model(make_vlm("instructblip-t5", qformer=dict(num_hidden_layers=4)), config)


def test_an_adapter_that_could_never_train_is_refused_by_its_tensors():
    """Whatever made them zero, a configuration or a library that turns initialisation off."""
    host, config = make_vlm("instructblip-t5"), PetalConfig(rank=4, threshold="soft")
    config.resolve("instructblip")
    plan = find_places(host, config)
    parts, modes = new_parts(plan, config)
    check_that_it_can_train(parts, plan, modes)
    with torch.no_grad():
        for mode in modes.values():
            mode.zero_()
    with pytest.raises(UserError, match="could never train: V and the mode vectors are zero, and every gradient"):
        check_that_it_can_train(parts, plan, modes)
    parts, modes = new_parts(plan, config)
    with torch.no_grad():
        parts.factors["image"].u.zero_()
    with pytest.raises(UserError, match=r"crossattention.attention could never train: U and V are zero"):
        check_that_it_can_train(parts, plan, modes)
    parts, modes = new_parts(plan, PetalConfig(rank=4, threshold="soft", init_output="uniform"))
    with torch.no_grad():
        parts.factors["text"].cores.threshold.fill_(9.0)
    with pytest.raises(UserError, match="the core are zero, and no gradient passes the soft threshold"):
        check_that_it_can_train(parts, plan, modes)
    petal("instructblip-t5", init_modes="zeros", init_output="uniform")  # only V at zero would be too much


def test_zero_queries_are_pointed_out():
    host = make_vlm("instructblip-t5")
    torch.nn.init.zeros_(host.query_tokens)
    with pytest.warns(UserWarning, match="query_tokens are all zero"):
        get_peft_model(host, PetalConfig(rank=4))
