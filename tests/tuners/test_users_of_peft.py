"""What users of PEFT try with any tuner, for both of petx: supported and right, or refused in words."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from petx.errors import UserError
from petx.tuners import PetalConfig, VLPetConfig, load_adapter
from tests.fixtures.tiny_hosts import logits, make_host, randomise, tuned
from tests.fixtures.tiny_vlms import make_vlm, petal, vlm_logits
from tests.fixtures.tiny_vlms import randomise as randomise_petal

pytestmark = pytest.mark.filterwarnings("ignore")

KINDS = {
    "vl_bart": (make_host, tuned, logits, randomise, lambda: VLPetConfig(rank=8, heads=4, decoder_rank=4)),
    "instructblip-t5": (
        make_vlm,
        petal,
        vlm_logits,
        randomise_petal,
        lambda: PetalConfig(rank=4, experts=2, expert_rank=3),
    ),
}
each = pytest.mark.parametrize("kind", KINDS)


def two(kind):
    _, make, _, shake, config = KINDS[kind]
    model = make(kind)
    model.add_adapter("b", config())
    shake(model, "b")
    return model.eval()


@each
def test_every_row_is_computed_by_the_adapter_it_names(kind):
    from tests.fixtures.tiny_hosts import batch
    from tests.fixtures.tiny_vlms import vlm_batch

    model, read = two(kind), KINDS[kind][2]
    wanted = {}
    for name in ("default", "b"):
        model.set_adapter(name)
        wanted[name] = read(model, kind)
    model.set_adapter("default")
    with model.disable_adapter():
        wanted["__base__"] = read(model, kind)
    inputs = batch(kind) if kind == "vl_bart" else vlm_batch(kind)
    for names in (["default", "b"], ["b", "default"], ["__base__", "b"]):
        with torch.no_grad():
            got = model(**inputs, adapter_names=names).logits
        for row, name in enumerate(names):
            torch.testing.assert_close(got[row], wanted[name][row], rtol=1e-4, atol=1e-5)
    assert torch.equal(read(model, kind), wanted["default"])
    with pytest.raises(UserError, match="adapter_names: there is no adapter 'c'"):
        model(**inputs, adapter_names=["default", "c"])


@each
def test_a_name_for_every_row_is_one_for_each(kind):
    """Two names for four rows are not two for each name; beams, which repeat every row, are."""
    from tests.fixtures.tiny_hosts import batch
    from tests.fixtures.tiny_vlms import vlm_batch

    model, inputs = two(kind), batch(kind) if kind == "vl_bart" else vlm_batch(kind)
    inputs = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    twice = {name: torch.cat([tensor, tensor]) for name, tensor in inputs.items()}
    starts = {"decoder_input_ids": torch.ones(4, 1, dtype=torch.long)}
    for names in (["default", "b"], ["default"]):
        for call in (lambda given: model(**given, **starts), lambda given: model.generate(**given, max_new_tokens=1)):
            with pytest.raises(UserError, match=f"must name every row: {len(names)} names for 4 rows"):
                call({**twice, "adapter_names": names})
    assert model(**twice, **starts, adapter_names=["default", "b"] * 2).logits.shape[0] == 4
    beams = dict(max_new_tokens=1, num_beams=2, adapter_names=["default", "b"])
    assert len(model.generate(**inputs, **beams)) == 2
    if kind == "vl_bart":  # whose generate takes its first input without a name, too
        assert len(model.generate(inputs.pop("input_ids"), **inputs, **beams)) == 2


@each
def test_names_that_cannot_be_meant_are_refused(kind):
    _, make, _, _, config = KINDS[kind]
    model = make(kind)
    with pytest.raises(UserError, match="'__base__' stands for the frozen model in adapter_names"):
        model.add_adapter("__base__", config())
    other = config()
    other.modules_to_save = ["nope"]
    with pytest.raises(UserError, match="modules_to_save names 'nope', and .* has none"):
        model.add_adapter("c", other)
    assert list(model.peft_config) == ["default"]


def test_heads_that_peft_names_itself_are_no_mistake():
    """For a classifier it names two modules to train whole, of which a model has one."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    host = LlamaForSequenceClassification(LlamaConfig(**sizes, num_labels=2, pad_token_id=0))
    model = get_peft_model(host, VLPetConfig(preset="decoder", rank=8, task_type="SEQ_CLS"))
    assert model.base_model.model.score.modules_to_save["default"].weight.requires_grad


@each
def test_merge_of_an_adapter_that_is_not_active_is_refused(kind):
    model = two(kind)
    with pytest.raises(UserError, match="is not the active one"):
        model.merge_adapter(["b"])


@each
def test_file_that_does_not_fit_leaves_the_model_as_it_was(kind, tmp_path):
    host_of, make, read, *_ = KINDS[kind]
    make(kind).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[-1])
    save_file(tensors, file)
    host = host_of(kind)
    before = {name: (id(p), p.requires_grad) for name, p in host.named_parameters()}
    wanted = read(host, kind)
    with pytest.raises(UserError, match="is missing"):
        load_adapter(host, tmp_path)
    assert before == {name: (id(p), p.requires_grad) for name, p in host.named_parameters()}
    assert torch.equal(read(host, kind), wanted)
    with pytest.warns(UserWarning, match="1 tensors were left out or keep their first values"):
        load_adapter(host, tmp_path, strict=False)


@pytest.mark.parametrize("field", ["rank", "dropout", "scale", "modules_to_save"])
def test_field_of_another_type_is_named(field, tmp_path):
    petal("instructblip-t5").save_pretrained(tmp_path / "p")
    tuned("vl_bart").save_pretrained(tmp_path / "v")
    for folder, host in ((tmp_path / "p", "instructblip-t5"), (tmp_path / "v", "vl_bart")):
        file = folder / "adapter_config.json"
        record = json.loads(file.read_text())
        if field in record:
            file.write_text(json.dumps(record | {field: float("nan")}))
            with pytest.raises(UserError, match=f"{field} must be .*, got nan"):
                load_adapter(KINDS[host][0](host), folder)


def test_rank_beyond_the_machine_is_refused_with_its_bytes():
    with pytest.raises(UserError, match="would take .* bytes, and this machine has"):
        petal("instructblip-t5", rank=10**5)


def test_pattern_whose_search_does_not_end_is_refused(monkeypatch):
    monkeypatch.setattr("petx.tuners.vlpet.sites.SECONDS", 0.01)
    with pytest.raises(UserError, match=r"encoder_sites in .* takes more than 0\.01 s"):
        tuned("vl_bart", preset="bart", encoder_sites=[{"output": r"(([a-z_0-9.]|[a-z]\w*)+)+(?!.|$)"}])


@pytest.mark.parametrize("config", [VLPetConfig, PetalConfig])
@pytest.mark.parametrize("name", ["target_modules", "exclude_modules", "layers_to_transform"])
def test_options_for_places_say_what_takes_their_place(config, name):
    with pytest.raises(
        UserError, match=rf"{name} \(got \['q_proj'\]\) is no option of this method; (encoder_s|towers)"
    ):
        config(**{name: ["q_proj"]})


@each
def test_adapter_of_a_compiled_host_loads_into_a_plain_one(kind, tmp_path):
    host_of, make, read, *_ = KINDS[kind]
    wanted = read(make(kind), kind)
    make(torch.compile(host_of(kind), backend="eager")).save_pretrained(tmp_path)
    assert not any("_orig_mod" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    for reader in (PeftModel.from_pretrained, load_adapter):
        torch.testing.assert_close(read(reader(host_of(kind), tmp_path).eval(), kind), wanted)


@each
def test_data_parallel_is_refused_by_name(kind):
    model = KINDS[kind][1](kind)
    layer = next(m for m in model.modules() if hasattr(m, "merged_tensors"))
    with pytest.raises(UserError, match="DataParallel"):
        layer._replicate_for_data_parallel()(torch.zeros(1))


class Packed(torch.Tensor):
    """Stands for a quantising library's tensor, which holds packed numbers and claims a float dtype."""


@each
def test_quantised_base_is_refused_before_anything_changes(kind):
    model = KINDS[kind][1](kind, **({"granularity": "middleY"} if kind == "vl_bart" else {}))
    layer = next(m for m in model.modules() if hasattr(m, "merged_tensors"))
    base = layer.get_base_layer()
    base.weight = torch.nn.Parameter(base.weight.data.as_subclass(Packed), requires_grad=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(UserError, match="base is quantised"):
        model.merge_adapter()
    if kind == "vl_bart":
        with pytest.raises(UserError, match="base is quantised"):
            model.base_model.fold_gate()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@each
def test_unload_gives_the_plain_model(kind):
    plain = KINDS[kind][1](kind).unload()
    assert not [name for name, _ in plain.named_modules() if "petal" in name or "vlpet" in name or "to_save" in name]


@each
def test_weighted_adapters_are_refused(kind):
    with pytest.raises(UserError, match="add_weighted_adapter would not be exact"):
        two(kind).add_weighted_adapter(["default", "b"], [0.5, 0.5], "c")
