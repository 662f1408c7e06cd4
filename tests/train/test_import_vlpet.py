"""``petx import-vlpet``: a checkpoint under the released code's names becomes a tuned model that computes the same."""

import re

import pytest
import torch
from peft import get_peft_model

from petx import hosts
from petx.baselines.vlpet import vlpet_config
from petx.cli import main as petx
from petx.train import tuned
from tests.fixtures import image_text
from tests.fixtures.tiny_tuned import randomise

HOST = hosts.find("vl_bart")
VISUAL = {  # name here -> released
    "feature": "feat_embedding.0",
    "feature_norm": "feat_embedding.1",
    "position": "absolute_vis_pos_embedding.0",
    "position_norm": "absolute_vis_pos_embedding.1",
    "image_order": "img_order_embedding",
}
GATES = {
    "large": {"gate_down": "large_x_down", "gate": "large_x_up"},
    "middleX": {"gate": "middle_xy_add"},
    "middleY": {"gate_scale": "middle_ia3_add"},
    "small": {"gate": "small_xy_cat"},
}
LEVELS = ["large", *(pytest.param(level, marks=pytest.mark.slow) for level in ("middleX", "middleY", "small"))]
TASKS = ("vqa", "gqa", "nlvr", "caption")


def tuned_bart(own, level="large", **more):
    """A random VL-PET on the visual BART of ``own``, and its settings."""
    torch.manual_seed(0)
    settings = image_text.settings(own, own, level=level, rank=8, gate_rank=6, decoder_rank=4, heads=4, **more)
    model = get_peft_model(
        HOST.pretrained(settings, HOST.pretrained_tokenizers(settings)), vlpet_config(settings, "bart")
    )
    randomise(model)
    return model.eval()


def released(model, level="large", lists=("down",)):
    """The state_dict that the released code would have saved; ``lists``: whose heads are modules of their own."""
    state = {}
    for name, tensor in model.state_dict().items():
        if ".original_module." in name:
            continue
        name = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        name = name.replace(".base_layer", "")
        if match := re.fullmatch(r"visual_embedding\.(\w+)\.(\w+)", name):
            state[f"model.encoder.visual_embedding.{VISUAL[match[1]]}.{match[2]}"] = tensor
        elif match := re.fullmatch(r"(.*encoder\.layers\.\d+)\.(.+)\.vlpet_adapter\.default\.(\w+)(\.\w+)?", name):
            place = {"self_attn.out_proj": "attn", "fc2": "ff"}[match[2]]
            if match[3] in ("down", "up"):
                parts = tensor.chunk(4) if match[3] in lists else [tensor]
                for i, part in enumerate(parts):
                    number = f".{i}" if match[3] in lists else ""
                    state[f"{match[1]}.{place}_adapter_multihead_{match[3]}{number}{match[4]}"] = part.clone()
            else:
                state[f"{match[1]}.encoder_{place}_adapter_gating_{GATES[level][match[3]]}{match[4] or ''}"] = tensor
        elif match := re.fullmatch(r"(.*encoder_attn)\.v_proj\.vlpet_adapter\.default\.(\w+)\.(\w+)", name):
            for task in TASKS:
                path = f"{match[1]}.attn_value_parallel_adapter.adapters.{task}"
                state[f"{path}.{match[2]}_sampler.{match[3]}"] = tensor
        else:
            state[name] = tensor
    state["model.encoder.visual_embedding.obj_order_embedding.weight"] = state["model.shared.weight"]
    return state


def imported(own, state, folder, *more):
    torch.save(state, folder / "LAST.pth")
    command = ["import-vlpet", str(folder / "LAST.pth"), "--host", str(own / "bart"), "--output", str(folder / "out")]
    return petx([*command, *more])


def outputs(model):
    draw = torch.Generator().manual_seed(3)
    batch = {
        "input_ids": torch.randint(3, 20, (2, 5), generator=draw),
        "visual_features": torch.randn(2, 4, image_text.WIDTH, generator=draw),
        "decoder_input_ids": torch.randint(3, 20, (2, 3), generator=draw),
    }
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("level", LEVELS)
def test_a_published_checkpoint_computes_the_same(own, tmp_path, capsys, level):
    model = tuned_bart(own, level)
    state = released(model, level)
    layer = "model.encoder.layers.0"
    assert state[f"{layer}.attn_adapter_multihead_down.3.weight"].shape == (2, 16)
    assert any(f"{layer}.encoder_ff_adapter_gating_" in name for name in state)
    assert "model.decoder.layers.0.encoder_attn.attn_value_parallel_adapter.adapters.nlvr.up_sampler.bias" in state
    assert imported(own, state, tmp_path) == 0
    loaded = tuned.load(tmp_path / "out" / "tuned")
    assert torch.equal(outputs(loaded.model), outputs(model))
    assert (loaded.settings.level, loaded.settings.heads, loaded.settings.decoder_rank) == (level, 4, 4)
    printed = capsys.readouterr().out
    assert "model.encoder.layers.*.ff_adapter_multihead_down.*.weight -> " in printed
    assert "fc2.vlpet_adapter.down.weight (4)" in printed and "tensors under their own names" in printed
    assert outputs(loaded.model).std() > 0.01 and not torch.equal(
        outputs(HOST.load(tmp_path / "out" / "host")), outputs(model)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "design, lists", [("up", ("up",)), ("down-up", ("down", "up")), ("down-up-pair", ("down", "up"))]
)
def test_other_designs(own, tmp_path, design, lists):
    model = tuned_bart(own, design=design)
    assert imported(own, {f"module.{k}": v for k, v in released(model, lists=lists).items()}, tmp_path) == 0
    loaded = tuned.load(tmp_path / "out" / "tuned")
    assert loaded.settings.design == design and torch.equal(outputs(loaded.model), outputs(model))


@pytest.fixture(scope="module")
def whole(own):
    return released(tuned_bart(own))


def without(state, part):
    return {name: tensor for name, tensor in state.items() if part not in name}


UP = "model.encoder.layers.0.ff_adapter_multihead_up.weight"
DOWN = "model.encoder.layers.0.ff_adapter_multihead_down.weight"
SMALL = "model.encoder.layers.0.encoder_ff_adapter_gating_small_xy_cat.weight"
VALUE = "model.decoder.layers.0.encoder_attn.attn_value_parallel_adapter.adapters.gqa.up_sampler.bias"
WRONG = [
    (lambda state: [1, 2], "must hold a state_dict, names with tensors; got list"),
    (lambda state: {"model": state}, "must hold a state_dict, names with tensors; at 'model' is dict"),
    (lambda state: state | {0: torch.ones(1)}, r"names with tensors; at 0 is torch.float32 \[1\]"),
    (
        lambda state: state | {UP: torch.ones(())},
        rf"{UP} must be a dense tensor of real numbers, got torch.float32 \[\]",
    ),
    (lambda state: state | {UP: torch.ones(16, 8).to_sparse()}, f"{UP} must be a dense tensor .* torch.sparse_coo"),
    (lambda state: state | {UP: torch.ones(16, 8).to(torch.int8)}, f"{UP} must be a dense tensor .* torch.int8"),
    (lambda state: state | {DOWN: torch.ones(8, 16)}, "fc2.vlpet_adapter.down.weight whole and by heads"),
    (lambda state: without(state, "model.shared"), "model.shared.weight is missing"),
    (lambda state: without(state, "adapter_multihead_down.2.bias"), "head 2 of .*vlpet_adapter.down.bias is missing"),
    (lambda state: without(state, "self_attn.k_proj.bias"), r"nothing becomes model.encoder.layers.0.self_attn.k_proj"),
    (lambda state: without(state, UP), "holds no tensor for fc2.vlpet_adapter.up.weight"),
    (
        lambda state: without(state, UP.replace("ff", "attn")),
        r"nothing becomes .*vlpet_adapter.up.weight, .* \[16, 8\]",
    ),
    (lambda state: without(state, "feat_embedding.0.weight"), "feat_embedding.0.weight is missing, or no matrix"),
    (lambda state: without(state, "attn_value_parallel"), "no tensor for v_proj.* tuned by another method"),
    (lambda state: state | {"model.encoder.layers.0.lora_A": torch.ones(1)}, "layers.0.lora_A is of no use here"),
    (lambda state: state | {UP: torch.ones(16, 9)}, rf"{UP} becomes .* of \[16, 9\], wanted \[16, 8\]"),
    (lambda state: state | {VALUE: torch.ones(16)}, "adapters.gqa.up_sampler.bias differs from another task's"),
    (lambda state: state | {"lm_head.weight": torch.ones(1)}, "lm_head.weight differs from model.shared.weight"),
    (lambda state: state | {UP: torch.full((16, 8), torch.nan)}, f"{UP} has values that are not finite"),
    (lambda state: state | {SMALL: torch.ones(1)}, "gates of several levels, large, small; wanted one"),
]


@pytest.mark.parametrize("change, message", WRONG)
def test_what_does_not_fit_is_named_and_nothing_is_written(own, whole, tmp_path, capsys, change, message):
    assert imported(own, change(whole), tmp_path) == 2
    assert re.search(message, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["LAST.pth"]


def test_files_and_hosts_that_are_none(own, whole, tmp_path, capsys):
    (tmp_path / "LAST.pth").write_bytes(b"no pickle")
    command = ["import-vlpet", str(tmp_path / "LAST.pth"), "--output", str(tmp_path / "out")]
    assert petx([*command, "--host", str(own / "bart")]) == 2
    told = capsys.readouterr().err
    assert "LAST.pth is damaged, no file of torch.save, or holds more than tensors" in told
    assert "weights_only" not in told  # torch's advice, by which a file runs what it likes
    assert petx(["import-vlpet", "nowhere.pth", "--output", str(tmp_path / "out")]) == 2
    assert "no such file: nowhere.pth" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert imported(own, whole, tmp_path) == 2
    assert "is there already; name a new folder" in capsys.readouterr().err


def test_a_host_with_another_vocabulary_is_refused(own, whole, tmp_path, capsys):
    rows = whole["model.shared.weight"].shape[0]
    state = {name: tensor[:-1] if len(tensor) == rows else tensor for name, tensor in whole.items()}
    assert imported(own, state, tmp_path) == 2
    assert "model.shared.weight has" in capsys.readouterr().err
