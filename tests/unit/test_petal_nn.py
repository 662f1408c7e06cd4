"""PETAL's layers: equal to torch's if the adaptation is off, what they add, initial values, state, bad sizes."""

import copy

import pytest
import torch
import torch.nn.functional as F

from petx import nn


def with_values(layer, spread=0.5):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return layer.eval()


def count(layer):
    return sum(parameter.numel() for parameter in layer.parameters())


# ---- cores ----


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_cores_are_the_contraction(form):
    layer, modes = with_values(nn.ModeCores(3, form=form)), torch.randn(5, 3)
    for mode, core in zip(modes, layer(modes), strict=True):
        whole = layer.core if form == "full" else torch.zeros(3, 3, 3).index_put_([torch.arange(3)] * 3, layer.core)
        wanted = sum(whole[:, :, k] * mode[k] for k in range(3))
        torch.testing.assert_close(core if form == "full" else torch.diag(core), wanted)


@pytest.mark.parametrize("per_rank", [False, True])
@pytest.mark.parametrize("threshold", ["soft", "hard", "sigmoid"])
def test_threshold_is_learnt(threshold, per_rank):
    layer = nn.ModeCores(4, threshold=threshold, per_rank=per_rank, threshold_init=0.1)
    assert layer.threshold.shape == ((4,) if per_rank else (1,)) and (layer.threshold == 0.1).all()
    layer(torch.randn(3, 4)).square().sum().backward()
    assert layer.threshold.grad.all() and layer.core.grad.any()
    assert f"threshold='{threshold}'" in repr(layer)


def test_initial_cores():
    torch.manual_seed(0)
    core = nn.ModeCores(64).core
    assert core.abs().max() <= 3**0.5 / 64 and abs(core.std().item() * 64 - 1) < 0.01  # std 1 / R
    diagonal = nn.ModeCores(8, form="diagonal", threshold="soft")
    assert (diagonal.core == 1).all() and not diagonal.threshold.any()
    modes = torch.randn(2, 8)
    assert torch.equal(diagonal(modes), modes)  # at Γ = 0 the plain decomposition


# ---- adapted linears ----


@pytest.mark.parametrize("bias", [True, False])
def test_mode_linear_is_torchs_linear_until_it_learns(bias):
    torch.manual_seed(0)
    frozen, x = torch.nn.Linear(8, 6, bias), torch.randn(2, 3, 8)
    layer = nn.ModeLinear(8, 6, 4, bias)
    missing, unexpected = layer.load_state_dict(frozen.state_dict(), strict=False)
    assert not unexpected and set(missing) == {"mode", "factors.u", "factors.v", "factors.cores.core"}
    frozen.requires_grad_(False)
    assert torch.equal(layer(x), frozen(x)) and isinstance(layer, torch.nn.Linear)
    assert {name for name, p in layer.named_parameters() if not p.requires_grad} == set(frozen.state_dict())
    layer(x).square().sum().backward()
    assert layer.factors.v.grad.any() and not layer.mode.grad.any()


@pytest.mark.parametrize("core", ["full", "diagonal"])
def test_mode_linear_adds_the_update_and_merges(core):
    layer, x = with_values(nn.ModeLinear(8, 6, 4, core=core)), torch.randn(2, 3, 8)
    u, v, c = layer.factors.u, layer.factors.v, layer.factors.cores.core
    m = torch.diag(c * layer.mode) if core == "diagonal" else torch.einsum("ijk,k->ij", c, layer.mode)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight + v @ m.T @ u, layer.bias), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.merged_weight(), (layer.weight + v @ m.T @ u).detach(), rtol=1e-4, atol=1e-5)


def test_mode_linear_takes_the_place_of_a_linear():
    host = torch.nn.Sequential(torch.nn.Linear(8, 6, dtype=torch.float64), torch.nn.ReLU())
    names, x = list(host.state_dict()), torch.randn(3, 8, dtype=torch.float64)
    wanted, weight = host(x), host[0].weight
    host[0] = nn.ModeLinear.from_linear(host[0], 4, dropout=0.1)
    assert torch.equal(host(x), wanted) and host[0].weight is weight and not weight.requires_grad
    assert list(host.state_dict())[:2] == names and host[0].mode.dtype == torch.float64


def test_layers_share_factors():
    factors = nn.ModeFactors(8, 6, 4, threshold="soft")
    layers = torch.nn.ModuleList(nn.ModeLinear(8, 6, 4, factors=factors) for _ in range(3))
    assert count(layers) == 3 * (48 + 6 + 4) + 32 + 24 + 64 + 1
    twins = copy.deepcopy(layers)
    assert twins[0].factors is twins[2].factors is not factors
    image = nn.ModeFactors(5, 6, 4, core=factors.cores)  # inputs of another width by the same core
    assert nn.ModeLinear(5, 6, 4, factors=image)(torch.randn(2, 5)).shape == (2, 6)


def test_mode_projections_are_mode_linears_beside_each_other():
    together = with_values(nn.ModeProjections(8, 6, 4, names=("query", "key", "value")))
    x = torch.randn(2, 3, 8)
    for name, found in zip(("query", "key", "value"), together(x), strict=True):
        alone = nn.ModeLinear(8, 6, 4, factors=together.factors)
        alone.load_state_dict(getattr(together, name).state_dict(), strict=False)
        alone.mode.data = together.modes[name].data
        torch.testing.assert_close(found, alone(x), rtol=1e-4, atol=1e-5)
    assert {"query.weight", "query.bias", "modes.query"} <= set(together.state_dict())
    fresh = nn.ModeProjections(8, 6, 4)
    assert all(
        torch.equal(y, getattr(fresh, n)(x)) for y, n in zip(fresh(x), ("q_proj", "k_proj", "v_proj"), strict=True)
    )


@pytest.mark.parametrize("shared_mask", [False, True])
def test_dropout_only_while_training(shared_mask):
    layer = with_values(nn.ModeProjections(8, 6, 4, names=("a", "b"), dropout=0.5, shared_mask=shared_mask))
    layer.modes["b"].data = layer.modes["a"].data
    layer.b.load_state_dict(layer.a.state_dict())
    x = torch.randn(7, 8)
    a, b = layer(x)
    assert torch.equal(a, b) and torch.equal(a, layer(x)[0])
    a, b = layer.train()(x)
    assert torch.equal(a, b) is shared_mask and not torch.equal(a, layer(x)[0])


def test_initial_factors_and_modes():
    torch.manual_seed(0)
    layer = nn.ModeLinear(400, 30, 64)
    assert not layer.factors.v.any() and 0.99 / 20 < layer.factors.u.abs().max() <= 1 / 20
    bound = (6 / 65) ** 0.5
    assert 0.9 * bound < layer.mode.abs().max() <= bound
    with torch.no_grad():
        layer.factors.v.fill_(1.0)
    layer.reset_parameters()
    assert not layer.factors.v.any()


# ---- experts, residuals, context ----


@pytest.mark.parametrize("gate", ["uniform", "token", "sample"])
def test_experts_are_bottlenecks_and_the_gate_starts_uniform(gate):
    torch.manual_seed(0)
    layer, x = nn.ExpertMixture(8, 3, 2, gate=gate), torch.randn(2, 5, 8)
    total = 0
    for k in range(3):
        down = F.linear(x, layer.down_weight[2 * k : 2 * k + 2], layer.down_bias[2 * k : 2 * k + 2])
        total = total + F.linear(down, layer.up_weight[:, 2 * k : 2 * k + 2], layer.up_bias[k]) / 3
    torch.testing.assert_close(layer(x), 0.6 * x + 0.4 * total)
    mask = torch.tensor([[1, 0, 0, 1, 1]] * 2)
    out = layer(x, scope_mask=mask, pool_mask=mask)
    assert torch.equal(out[:, 1:3], x[:, 1:3]) and not torch.equal(out[:, 0], x[:, 0])


def test_experts_switched_off_are_the_identity():
    layer, x = nn.ExpertMixture(8, 3, 2, alpha=1.0, beta=0.0), torch.randn(2, 5, 8)
    assert torch.equal(layer(x), x)


def test_initial_experts_and_their_count():
    torch.manual_seed(0)
    with torch.device("meta"):
        assert count(nn.ExpertMixture(768)) == 594_816
        assert count(nn.ExpertMixture(768, gate="token")) == 594_816 + 6 * 769
    layer = nn.ExpertMixture(64, gate="token", top_k=2)
    assert abs(layer.down_weight.std() - 0.02) < 0.001 and abs(layer.up_weight.std() - 0.02) < 0.001
    assert not any(t.any() for t in (layer.down_bias, layer.up_bias, layer.gate_weight, layer.gate_bias))
    assert "top_k=2" in repr(layer) and nn.ExpertMixture(8, bias=False).down_bias is None


def test_query_transformation():
    torch.manual_seed(0)
    layer, x, y = nn.QueryTransformation(2000), torch.randn(3, 2000), torch.randn(3, 2000)
    assert 0.00018 < layer.scale.std() < 0.00022 and 0.00018 < layer.shift.std() < 0.00022
    torch.testing.assert_close(layer(x), 0.1 * (x * layer.scale + layer.shift))
    torch.testing.assert_close(layer(x, y), y + layer(x))
    with torch.no_grad():
        layer.scale.zero_(), layer.shift.zero_()
    assert not layer(x).any() and torch.equal(layer(x, y), y)
    layer(x, y).sum().backward()
    torch.testing.assert_close(layer.scale.grad, 0.1 * x.sum(0))
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_context_enhancement():
    output, queries = torch.randn(2, 3, 4, 5).unbind()
    kept = output.clone()
    assert nn.ContextEnhancement()(output, queries) is output
    batch = nn.ContextEnhancement("batch_mean")(output, queries)
    torch.testing.assert_close(batch[:, 0], output[:, 0] + 0.1 * queries[:, 0].mean(0))
    own = nn.ContextEnhancement("per_sample", 0.5)(output, queries)
    torch.testing.assert_close(own[:, 0], output[:, 0] + 0.5 * queries.mean(1))
    assert torch.equal(batch[:, 1:], output[:, 1:]) and torch.equal(own[:, 1:], output[:, 1:])
    assert torch.equal(output, kept)
    torch.testing.assert_close(nn.ContextEnhancement("per_sample")(output[:1], queries[:1])[0, 1:], output[0, 1:])
    single = nn.ContextEnhancement("batch_mean")(output[:1], queries[:1])
    torch.testing.assert_close(single[:, 0], output[:1, 0] + 0.1 * queries[:1, 0])
    assert nn.ContextEnhancement("batch_mean")(output[:0], queries[:0]).shape == (0, 4, 5)


# ---- all of them ----

LAYERS = {
    "cores": lambda **place: nn.ModeCores(4, threshold="soft", **place),
    "linear": lambda **place: nn.ModeLinear(8, 6, 4, **place),
    "projections": lambda **place: nn.ModeProjections(8, 6, 4, **place),
    "experts": lambda **place: nn.ExpertMixture(8, 2, 3, gate="sample", **place),
    "transformation": lambda **place: nn.QueryTransformation(8, **place),
}


@pytest.mark.parametrize("name", LAYERS)
def test_state_places_and_copies(name):
    assert {p.device.type for p in LAYERS[name](device="meta").parameters()} == {"meta"}
    layer = with_values(LAYERS[name](dtype=torch.float64))
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    x = torch.randn(2, 3, 4 if name == "cores" else 8, dtype=torch.float64)
    x = x[0] if name == "cores" else x
    other = LAYERS[name](dtype=torch.float64).eval()
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer)):
        torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)
    assert repr(layer)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.ModeCores(0), "ModeCores: rank must be a positive integer, got 0"),
        (lambda: nn.ModeCores(4, form="cube"), "ModeCores: form must be one of 'full', 'diagonal', got 'cube'"),
        (lambda: nn.ModeCores(4, threshold="firm"), "ModeCores: threshold must be one of 'none', 'soft'"),
        (lambda: nn.ModeCores(4, temperature=0), "ModeCores: temperature must be positive and finite, got 0"),
        (lambda: nn.ModeLinear(8, 6, 2.0), "ModeLinear: rank must be a positive integer, got 2.0"),
        (lambda: nn.ModeLinear(8, 6, 2, dropout=1), r"ModeLinear: dropout must be in \[0, 1\), got 1"),
        (lambda: nn.ModeLinear(8, 6, 2, factors=nn.ModeFactors(8, 5, 2)), "factors must be for in_features=8.*8, 5, 2"),
        (lambda: nn.ModeLinear(8, 6, 2, factors=nn.ModeFactors(8, 6, 2), core="full"), "bring their core's options"),
        (lambda: nn.ModeFactors(8, 6, 2, core=nn.ModeCores(3)), "the shared core has rank 3, wanted 2"),
        (lambda: nn.ModeProjections(8, 6, 2, names=()), "names must be 1 to 4 different ones"),
        (lambda: nn.ModeProjections(8, 6, 2, names=("a", "a")), "names must be 1 to 4 different ones"),
        (lambda: nn.ModeProjections(8, 6, 2, names=("modes",)), "not 'modes' or 'factors', got \\('modes',\\)"),
        (lambda: nn.ExpertMixture(8, 0), "ExpertMixture: experts must be a positive integer, got 0"),
        (lambda: nn.ExpertMixture(8, gate="router"), "ExpertMixture: gate must be one of"),
        (lambda: nn.ExpertMixture(8, activation="silu"), "ExpertMixture: activation must be one of"),
        (lambda: nn.ExpertMixture(8, top_k=2), "top_k must be from 1 to experts = 6 and needs a gate"),
        (lambda: nn.ExpertMixture(8, gate="token", top_k=7), "top_k must be from 1 to experts = 6"),
        (lambda: nn.QueryTransformation(0), "QueryTransformation: features must be a positive integer"),
        (lambda: nn.ContextEnhancement("batch"), "ContextEnhancement: context must be one of"),
        (lambda: nn.ContextEnhancement(weight=float("inf")), "ContextEnhancement: weight must be finite"),
        (
            lambda: nn.ContextEnhancement()(torch.ones(2, 3), torch.ones(2, 3)),
            r"must be \[B, Q, d\] both, got \[2, 3\]",
        ),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
