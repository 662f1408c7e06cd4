"""The layers: shapes, initial values, state, bad sizes."""

import copy

import pytest
import torch

from petx import nn


@pytest.mark.parametrize("design", ["down", "up", "down-up"])
def test_stacked_designs_are_one_adapter(design):
    """Heads' weights side by side are the plain adapter's, since concatenation commutes with GELU (section 3.2)."""
    torch.manual_seed(0)
    layer = nn.GatedAdapter(24, 8, 4, design=design, granularity="none")
    h = torch.randn(2, 3, 24)
    parts = [
        torch.nn.functional.linear(h, w, b)
        for w, b in zip(layer.down.weight.chunk(4), layer.down.bias.chunk(4), strict=True)
    ]
    z = torch.nn.functional.gelu(torch.cat(parts, -1), approximate="tanh")
    up = [
        torch.nn.functional.linear(z, w, b)
        for w, b in zip(layer.up.weight.chunk(4), layer.up.bias.chunk(4), strict=True)
    ]
    torch.testing.assert_close(layer(h), h + torch.cat(up, -1))


def test_pair_keeps_each_head_to_itself():
    torch.manual_seed(0)
    layer = nn.GatedAdapter(24, 8, 4, design="down-up-pair", granularity="none")
    h = torch.randn(2, 3, 24)
    heads = []
    for i in range(4):
        z = torch.nn.functional.linear(h, layer.down.weight[2 * i : 2 * i + 2], layer.down.bias[2 * i : 2 * i + 2])
        z = torch.nn.functional.gelu(z, approximate="tanh")
        heads.append(
            torch.nn.functional.linear(z, layer.up.weight[6 * i : 6 * i + 6], layer.up.bias[6 * i : 6 * i + 6])
        )
    torch.testing.assert_close(layer(h), h + torch.cat(heads, -1))


@pytest.mark.parametrize(
    "design, count", [("down", 148_320), ("up", 148_320), ("down-up", 148_320), ("down-up-pair", 93_024)]
)
def test_parameters_per_site(design, count):
    with torch.device("meta"):
        layer = nn.GatedAdapter(768, 96, 4, design=design, granularity="none")
    assert sum(p.numel() for p in layer.parameters()) == count


@pytest.mark.parametrize(
    "granularity, count", [("large", 148_320), ("middleX", 769), ("middleY", 768), ("small", 1537)]
)
def test_parameters_per_gate(granularity, count):
    with torch.device("meta"):
        layer = nn.GatedAdapter(768, 96, 4, granularity=granularity)
    assert sum(p.numel() for p in layer.parameters()) == 148_320 + count


def test_initial_values():
    torch.manual_seed(0)
    normal = nn.GatedAdapter(256, 64, 4, granularity="middleY")
    for weight in (normal.down.weight, normal.up.weight, normal.gate_scale):
        assert abs(weight.std().item() - 0.02) < 0.003
    assert not normal.down.bias.any() and not normal.up.bias.any()
    zeroed = nn.GatedAdapter(256, 64, 4, init="uniform", zero_init_up=True, zero_init_gate=True, scale=0.3)
    assert not zeroed.up.weight.any() and not zeroed.up.bias.any() and not zeroed.gate.weight.any()
    assert zeroed.down.bias.any() and zeroed.down.weight.abs().max() <= 1 / 16
    h, x = torch.randn(2, 2, 5, 256).unbind()
    torch.testing.assert_close(zeroed(h, x), 0.15 * h)  # s * sigmoid(0) * H
    norm = nn.GatedAdapter(16, 4, 1, granularity="none", norm="layer")
    assert (norm.norm_weight == 1).all() and (norm.norm_bias == 0).all()


def test_dropout_only_while_training():
    layer = nn.GatedAdapter(16, 4, 1, granularity="none", dropout=0.5)
    h = torch.randn(4, 5, 16)
    assert not torch.equal(layer(h), layer(h))
    layer.eval()
    assert torch.equal(layer(h), layer(h))


def test_state_and_copies_round_trip():
    layer = nn.GatedAdapter(16, 8, 2, granularity="large", norm="layer")
    h, x = torch.randn(2, 2, 3, 16).unbind()
    other = nn.GatedAdapter(16, 8, 2, granularity="large", norm="layer")
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(h, x), other(h, x))
    assert torch.equal(layer(h, x), copy.deepcopy(layer)(h, x))
    assert set(layer.state_dict()) == {
        *(f"{part}.{kind}" for part in ("down", "up", "gate_down", "gate") for kind in ("weight", "bias")),
        "norm_weight",
        "norm_bias",
    }
    assert "large" in repr(layer)


def test_value_adapter():
    layer = nn.ValueAdapter(24, 16, 4)
    e, v = torch.randn(2, 5, 24), torch.randn(2, 5, 16)
    z = torch.nn.functional.gelu(layer.down(e), approximate="tanh")
    torch.testing.assert_close(layer(e, v), v + layer.up(z))
    gated = nn.ValueAdapter(16, 16, 4, granularity="middleX")
    assert gated(v, v).shape == v.shape


def test_value_adapters():
    layer = nn.ValueAdapters(24, 16, 4, layers=3)
    e, v = torch.randn(2, 5, 24), torch.randn(2, 5, 3, 16)
    for i in range(3):
        z = torch.nn.functional.gelu(e @ layer.down_weight[i].T + layer.down_bias[i], approximate="tanh")
        torch.testing.assert_close(layer(e, v)[:, :, i], v[:, :, i] + z @ layer.up_weight[i].T + layer.up_bias[i])
    assert torch.equal(nn.ValueAdapters(24, 16, 4, layers=3, zero_init_up=True)(e, v), v)
    with pytest.raises(ValueError, match="layers must be a positive integer, got 0"):
        nn.ValueAdapters(24, 16, 4, layers=0)


def test_phm_weight_is_a_sum_of_kronecker_products():
    torch.manual_seed(0)
    layer = nn.PHMLinear(8, 6, order=2)
    torch.nn.init.normal_(layer.rule)
    expected = sum(torch.kron(a, b) for a, b in zip(layer.rule, layer.factor, strict=True))
    torch.testing.assert_close(layer.weight, expected)
    x = torch.randn(3, 8)
    torch.testing.assert_close(layer(x), x @ expected.T + layer.bias)


def test_phm_adapter_learns_from_a_zeroed_up_projection():
    layer = nn.GatedAdapter(16, 8, 1, modification="phm", granularity="none", zero_init_up=True)
    h = torch.randn(2, 3, 16)
    assert torch.equal(layer(h), h)
    layer(h).square().sum().backward()
    assert layer.up.factor.grad.any()


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((24, 8, 3), {}, "heads must divide rank for design='down', got heads=3, rank=8"),
        ((25, 8, 4), dict(design="up"), "heads must divide features"),
        ((24, 8, 3), dict(design="down-up-pair"), "heads must divide rank"),
        ((24, 0), {}, "rank must be a positive integer, got 0"),
        ((24, 8.0), {}, "rank must be a positive integer, got 8.0"),
        ((24, 8), dict(design="sideways"), "design must be one of"),
        ((24, 8), dict(granularity="medium"), "granularity must be one of"),
        ((24, 8), dict(dropout=1.5), "dropout must be in"),
        ((24, 8), dict(init="zeros"), "init must be"),
        ((24, 8), dict(modification="lora"), "modification must be"),
        ((24, 8), dict(modification="phm", phm_order=5), "order must divide both widths"),
        ((24, 8), dict(modification="phm", design="down-up-pair"), "block-diagonal"),
    ],
)
def test_bad_sizes(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        nn.GatedAdapter(*arguments, **options)
