"""Wrong values for every public argument, drawn from its annotation: a clear refusal or a right result alone."""

import functools
import inspect
import re
import traceback
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import petx
from petx import certify, functional, losses, metrics, models, nn, reference, tuners
from petx.errors import UserError
from petx.tuners import PetalConfig, VLPetConfig
from tests.fixtures.tiny_hosts import make_host, tuned

HERE = str(Path(petx.__file__).parent)


def r(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


WORDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
model = functools.cache(lambda: tuned("bart"))
plain = functools.cache(lambda: make_host("bart"))
# A good call of each: what a wrong value is put into. Layers are called once they are built.
FUNCTIONS = {
    functional.gated_adapter: lambda: dict(
        h=r(2, 5, 8), x=r(2, 5, 8), down_weight=r(4, 8), down_bias=r(4), up_weight=r(8, 2), up_bias=r(8), heads=2
    ),
    functional.value_adapter: lambda: dict(
        e=r(2, 5, 8), v=r(2, 5, 6), down_weight=r(4, 8), down_bias=r(4), up_weight=r(6, 4), up_bias=r(6)
    ),
    functional.value_adapters: lambda: dict(
        e=r(2, 5, 8),
        v=r(2, 5, 2, 6),
        down_weight=r(2, 4, 8),
        down_bias=r(2, 4),
        up_weight=r(2, 6, 4),
        up_bias=r(2, 6),
    ),
    functional.mode_cores: lambda: dict(core=r(4, 4, 4), modes=r(3, 4), threshold=r(1), gate="soft"),
    functional.mode_update: lambda: dict(
        x=r(2, 5, 8), u=r(4, 8), v=r(6, 4), cores=r(2, 4, 4), bases=[r(2, 5, 6), r(2, 5, 6)]
    ),
    functional.cp_reconstruct: lambda: dict(weights=[r(6, 8), r(6, 8)], u=r(4, 8), v=r(6, 4), cores=r(2, 4, 4)),
    functional.query_transformation: lambda: dict(x=r(2, 5, 8), scale=r(8), shift=r(8), to=r(2, 5, 8)),
    functional.expert_mixture: lambda: dict(
        x=r(2, 5, 8), down_weight=r(6, 8), down_bias=r(6), up_weight=r(8, 6), up_bias=r(3, 8), experts=3
    ),
    losses.label_bag: lambda: dict(labels=torch.tensor([[1, -100], [3, 0]]), vocabulary=5),
    losses.contrastive_loss: lambda: dict(similarity=r(3, 3), same=torch.eye(3, dtype=torch.bool)),
    losses.hard_negatives: lambda: dict(similarity=r(3, 3), same=torch.eye(3, dtype=torch.bool)),
    models.aggregate_instructions: lambda: dict(features=[r(2, 3, 4), r(2, 3, 4)], method="attention_score"),
    models.join_masks: lambda: dict(
        input_ids=WORDS,
        attention_mask=torch.ones(2, 3),
        visual_features=r(2, 4, 6),
        visual_attention_mask=torch.ones(2, 4),
    ),
    models.feature_config: lambda: dict(width=8, text_config=plain().config, queries=2, image_token=3),
    models.build_instruct_blip: lambda: dict(language_model="flan-t5-xl"),
    models.build_skeleton: lambda: dict(backbone="bart-base", features="image"),
    tuners.describe: lambda: dict(model=model(), adapter_name="default"),
    tuners.adapted: lambda: dict(model=model(), adapter_name="default"),
    tuners.parameter_counts: lambda: dict(model=model(), adapter_name="default"),
    tuners.load_adapter: lambda: dict(model=plain(), folder="nowhere", adapter_name="default", strict=True),
    certify.certify: lambda: dict(device="cuda:9999", operations=(), timed=True),
    certify.differences: lambda: dict(saved={"cpu": {}, "cuda": []}),
    metrics.find: lambda: dict(name="exact"),
    metrics.reads_references: lambda: dict(name="exact"),
    metrics.reads_rankings: lambda: dict(name="exact"),
    metrics.recall: lambda: dict(rankings=[["a", "b"]], relevant=[["a"]], k=1),
    metrics.exact_match: lambda: dict(predictions=["a", "b"], answers=["a", "c"]),
    metrics.match_accuracy: lambda: dict(predictions=["a"], annotations=[["a", "b"]]),
    metrics.vqa_accuracy: lambda: dict(predictions=["a"], annotations=[["a", "b"]]),
    metrics.vqa_scores: lambda: dict(annotations=["a", "b"]),
    metrics.normalize_answer: lambda: dict(text="A dog"),
    metrics.bleu: lambda: dict(captions=["a dog"], references=[["a dog", "dog"]]),
    metrics.cider_d: lambda: dict(captions=["a dog"], references=[["a dog", "dog"]]),
    metrics.rouge_l: lambda: dict(captions=["a dog"], references=[["a dog", "dog"]]),
}
LAYERS = {
    nn.GatedAdapter: (lambda: dict(features=8, rank=4, heads=2), lambda: (r(2, 5, 8), r(2, 5, 8))),
    nn.ValueAdapter: (lambda: dict(in_features=8, out_features=6, rank=4), lambda: (r(2, 5, 8), r(2, 5, 6))),
    nn.ValueAdapters: (
        lambda: dict(in_features=8, out_features=6, rank=4, layers=2),
        lambda: (r(2, 5, 8), r(2, 5, 2, 6)),
    ),
    nn.ModeLinear: (lambda: dict(in_features=8, out_features=6, rank=4), lambda: (r(2, 5, 8),)),
    nn.ModeProjections: (lambda: dict(in_features=8, out_features=6, rank=4), lambda: (r(2, 5, 8),)),
    nn.ModeCores: (lambda: dict(rank=4), lambda: (r(3, 4),)),
    nn.ExpertMixture: (lambda: dict(features=8, experts=3, rank=2), lambda: (r(2, 5, 8),)),
    nn.ModeFactors: (lambda: dict(in_features=8, out_features=6, rank=4), None),
    nn.ContextEnhancement: (lambda: dict(context="per_sample"), lambda: (r(2, 5, 8), r(2, 5, 8))),
    nn.QueryTransformation: (lambda: dict(features=8), lambda: (r(2, 5, 8),)),
    models.VisualEmbedding: (
        lambda: dict(visual_width=8, hidden_size=6),
        lambda: (r(2, 3, 8), r(9, 6), r(2, 3, 4), torch.tensor([[0, 0, 1]] * 2)),
    ),
    models.Temperature: (lambda: {}, lambda: (r(2, 2),)),
    models.FeatureVision: (lambda: dict(width=8), lambda: (r(2, 5, 8),)),
    nn.PHMLinear: (lambda: dict(in_features=8, out_features=8, order=2), lambda: (r(2, 5, 8),)),
    losses.MINE: (lambda: dict(first_features=4, second_features=5, hidden=3), lambda: (r(2, 4), r(2, 5))),
    losses.CLUB: (lambda: dict(first_features=4, second_features=5, hidden=3), lambda: (r(2, 4), r(2, 5))),
    losses.InfoNCE: (lambda: dict(first_features=4, second_features=5, hidden=3), lambda: (r(2, 4), r(2, 5))),
    losses.InformationBottleneck: (
        lambda: dict(z_features=4, x_features=6, vocabulary=5),
        lambda: (r(2, 3, 4), r(2, 3, 6), torch.tensor([[1, 2], [3, 0]])),
    ),
}
CONFIGS = {VLPetConfig: dict(rank=4, heads=2), PetalConfig: dict(rank=4, experts=2)}
# What has no arguments of petx's own, or is made by another: transformers' models and their configurations (what is
# visual in them goes through VisualEmbedding and join_masks), PEFT's tuners, what a function here returns or takes.
OTHERWISE = {
    *(
        models.VLBartConfig,
        models.VLBartForConditionalGeneration,
        models.VLT5Config,
        models.VLT5ForConditionalGeneration,
    ),
    *(models.InstructBlip, models.FeatureInstructBlip, models.FeatureInstructBlipConfig, models.Blip2Retrieval),
    *(tuners.VLPetModel, tuners.PetalModel, losses.LabelBag, nn.Tail, certify.record, metrics.names),
}
# Right values, which are then refused because of a good call's other argument.
ALMOST = {tuners.load_adapter: "'nowhere' is no folder here", certify.certify: "device cuda:.* does not exist"}
# Not of petx: PEFT's own fields, and where torch puts a tensor. `options` are handed on and named themselves.
ELSEWHERE = {"device", "options", "host"} | {
    field
    for field in inspect.signature(petx.tuners.PetalConfig).parameters
    if field in inspect.signature(__import__("peft").PeftConfig).parameters
}

ODD = st.sampled_from(
    [None, "odd", "", b"x", [], [1], (), {}, {"a": 1}, True, False, object(), 1j, np.zeros(2), [[1.0]], [None], type]
)
NUMBERS = st.one_of(st.integers(-3, 40), st.floats(allow_nan=True, allow_infinity=True))
TENSORS = st.one_of(
    st.lists(st.integers(0, 9), max_size=4).map(lambda shape: torch.ones(shape)),
    st.lists(st.integers(1, 3), min_size=1, max_size=3).map(lambda shape: torch.ones(shape, dtype=torch.int64)),
    st.just(torch.zeros(2, dtype=torch.complex64)),
)


def wrong(annotation):
    """Values that an argument so annotated is not, or may not be; some happen to be right."""
    kinds = typing.get_args(annotation) or (annotation,)
    drawn = [ODD, NUMBERS]
    if any(isinstance(kind, type) and issubclass(kind, torch.Tensor) for kind in kinds) or "Tensor" in str(annotation):
        drawn += [TENSORS, TENSORS, st.lists(TENSORS, max_size=3)]
    if str in kinds:
        drawn.append(st.text(max_size=4))
    if "list" in str(annotation) or "Sequence" in str(annotation):
        drawn += [st.lists(ODD, max_size=3), st.lists(st.text(max_size=3), max_size=3)]
    return st.one_of(drawn)


def arguments(target, skipped=0):
    found = list(inspect.signature(target).parameters.values())[skipped:]
    kept = [p for p in found if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in ELSEWHERE]
    return [(p.name, p.annotation) for p in kept]


def test_every_public_function_layer_and_configuration_is_here():
    packages = (certify, functional, losses, metrics, models, nn, tuners)
    public = {
        getattr(package, name) for package in packages for name in package.__all__ if callable(getattr(package, name))
    }
    assert public == {*FUNCTIONS, *LAYERS, *CONFIGS, *OTHERWISE}


def explained(error, name, owner, value=None, others=()):
    """Whether ``error`` is a refusal by petx that says which argument it is about.

    A size or a shape may be at odds with another argument's, which is then as good a name.
    """
    frames = traceback.extract_tb(error.__traceback__)
    by_petx = frames and str(Path(frames[-1].filename)).startswith(HERE)
    assert isinstance(error, ValueError | TypeError) and by_petx, f"{owner}: {name}: {error!r} from inside"
    fits = others if isinstance(value, torch.Tensor | int) and not isinstance(value, bool) else ()
    assert any(one in str(error) for one in (name, *fits)), f"{owner}: {name}: {error!r} does not name it"


def overflows(value):
    return isinstance(value, int | float) and abs(value) > 1e30


def tensors_in(result):
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, dict):  # a ModelOutput, too
        return [t for one in result.values() for t in tensors_in(one)]
    return [t for one in result for t in tensors_in(one)] if isinstance(result, list | tuple) else []


EACH = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
NAMED = [(target, name, hint) for target in FUNCTIONS for name, hint in arguments(target)]
BUILT = [(target, name, hint) for target in LAYERS for name, hint in arguments(target)]
CALLED = [
    (target, name, hint)
    for target in LAYERS
    if LAYERS[target][1]
    for name, hint in arguments(target.forward, skipped=1)
]
FIELDS = [(target, name, hint) for target in CONFIGS for name, hint in arguments(target)]


def ids(rows):
    return [f"{target.__name__}-{name}" for target, name, _ in rows]


@pytest.mark.parametrize("target, name, hint", NAMED, ids=ids(NAMED))
def test_functions(target, name, hint):
    definition = getattr(reference, target.__name__, None)

    @EACH
    @given(wrong(hint))
    def check(value):
        call = FUNCTIONS[target]() | {name: value}
        try:
            result = target(**call)
        except Exception as error:
            if isinstance(error, UserError) and re.search(ALMOST.get(target, "^$"), str(error)):
                return
            explained(error, name, target.__name__, value, call)
            return
        # Dropout is drawn. Of finite values too large for their dtype the order of the steps decides what overflows.
        if definition is not None and name not in ("dropout", "seed") and not overflows(value):
            with torch.no_grad():
                wanted = definition(**call)
            for got, want in zip(tensors_in(result), tensors_in(wanted), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, equal_nan=True, check_dtype=False)

    check()


@pytest.mark.parametrize("target, name, hint", BUILT, ids=ids(BUILT))
def test_layers(target, name, hint):
    make, inputs = LAYERS[target]

    @EACH
    @given(wrong(hint))
    def check(value):
        call = make() | {name: value}
        try:
            layer = target(**call)
        except Exception as error:
            explained(error, name, target.__name__, value, call)
            return
        if inputs is None:  # it is called by other layers
            return
        try:
            result = layer(*inputs())
        except ValueError as error:  # a layer of another size, which says what it is given
            explained(error, "", target.__name__)
            return
        assert tensors_in(result), f"{target.__name__}({name}={value!r})"

    check()


@pytest.mark.parametrize("target, name, hint", CALLED, ids=ids(CALLED))
def test_calls_of_layers(target, name, hint):
    make, inputs = LAYERS[target]
    layer = target(**make())
    good = dict(zip(inspect.signature(layer.forward).parameters, inputs(), strict=False))

    @EACH
    @given(wrong(hint))
    def check(value):
        try:
            result = layer(**good | {name: value})
        except Exception as error:
            explained(error, name, target.__name__, value, good)
            return
        assert tensors_in(result), f"{target.__name__}.forward({name}={value!r})"

    check()


LAID_OUT = {
    "sparse": torch.Tensor.to_sparse,
    "csr": lambda tensor: tensor.reshape(-1, tensor.shape[-1]).to_sparse_csr(),
    "mkldnn": torch.Tensor.to_mkldnn,
    "nested": lambda tensor: torch.nested.as_nested_tensor([*tensor], layout=torch.jagged),
}


def good_call(target):
    """What is called, and with what; a layer is built anew."""
    if target in FUNCTIONS:
        return target, FUNCTIONS[target]()
    make, inputs = LAYERS[target]
    run = target(**make())
    return run, dict(zip(inspect.signature(run.forward).parameters, inputs(), strict=False))


TENSORS_OF = [
    (target, name, layout)
    for target in dict.fromkeys(target for target, *_ in NAMED + CALLED)
    for name, value in good_call(target)[1].items()
    if isinstance(value, torch.Tensor) and value.dim() > 1
    for layout in LAID_OUT
    if layout != "mkldnn" or value.dtype == torch.float32
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of formats that are new
@pytest.mark.parametrize("target, name, layout", TENSORS_OF, ids=[f"{t.__name__}-{n}-{o}" for t, n, o in TENSORS_OF])
def test_tensors_that_are_not_dense(target, name, layout):
    """Right values in a wrong layout, which torch's own functions and operators refuse in words of their own."""
    run, call = good_call(target)
    with pytest.raises(Exception) as caught:
        run(**call | {name: LAID_OUT[layout](call[name])})
    explained(caught.value, name, target.__name__, call[name], call)


@pytest.mark.parametrize("target, name, hint", FIELDS, ids=ids(FIELDS))
def test_configurations(target, name, hint):
    @EACH
    @given(wrong(hint))
    def check(value):
        try:
            made = target(**CONFIGS[target] | {name: value})
        except Exception as error:
            explained(error, name, target.__name__)
            return
        kept = getattr(made, name)
        assert kept == value or list(kept) == list(value), f"{name}={value!r} became {kept!r}"

    check()
