"""The reference against numbers worked out by hand and against published known answers."""

import math

import pytest
import torch

from petx import reference


def gelu_tanh(z):
    return 0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


# One sample of two tokens, d = 2, r = 1; h and x are rows of these.
H = [[1.0, 2.0], [3.0, -1.0]]
X = [[0.5, -0.5], [1.0, 1.0]]
DOWN, DOWN_BIAS = [[1.0, -1.0]], [0.5]  # z = h0 - h1 + 0.5
UP, UP_BIAS = [[2.0], [1.0]], [0.0, -1.0]
Z = [-0.5, 4.5]
S = [[h[0] + 2 * gelu_tanh(z), h[1] + gelu_tanh(z) - 1] for h, z in zip(H, Z, strict=True)]


def call(x=X, **options):
    t = {k: torch.tensor(v, dtype=torch.float64) for k, v in options.items() if isinstance(v, list)}
    o = {k: v for k, v in options.items() if not isinstance(v, list)}
    base = [torch.tensor(v, dtype=torch.float64) for v in ([H], [x], DOWN, DOWN_BIAS, UP, UP_BIAS)]
    return reference.gated_adapter(*base, **t, **o)[0].tolist()


def close(got, want):
    torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=1e-6, atol=1e-6)


def test_none_is_the_plain_adapter():
    close(call(), S)


def test_scale_multiplies_the_whole_site():
    close(call(scale=0.3), [[0.3 * v for v in row] for row in S])


def test_large_gates_every_value_by_the_residual_input():
    got = call(granularity="large", gate_down_weight=[[1.0, 1.0]], gate_weight=[[1.0], [-2.0]], gate_bias=[0.0, 0.25])
    hidden = [gelu_tanh(x[0] + x[1]) for x in X]
    close(got, [[s[0] * sigmoid(a), s[1] * sigmoid(-2 * a + 0.25)] for s, a in zip(S, hidden, strict=True)])


def test_middle_x_has_one_gate_per_token():
    weight, bias = [0.1, -0.2], 0.3
    got = call(granularity="middleX", gate_weight=[weight], gate_bias=[bias])
    gates = [
        sigmoid(sum(w * (a + b) for w, a, b in zip(weight, x, s, strict=True)) + bias)
        for x, s in zip(X, S, strict=True)
    ]
    close(got, [[g * v for v in s] for g, s in zip(gates, S, strict=True)])
    got = call(granularity="middleX", gate_weight=[weight], gate_bias=[bias], gate_input="original")
    gates = [
        sigmoid(sum(w * (a + b) for w, a, b in zip(weight, x, h, strict=True)) + bias)
        for x, h in zip(X, H, strict=True)
    ]
    close(got, [[g * v for v in s] for g, s in zip(gates, S, strict=True)])


def test_middle_y_has_one_gate_per_channel():
    z = [0.5, -0.25]
    close(call(granularity="middleY", gate_weight=z), [[s[0] * 1.5, s[1] * 0.75] for s in S])
    got = call(granularity="middleY", gate_weight=z, middle_y="sigmoid")
    close(got, [[s[0] * (1 + sigmoid(0.5)), s[1] * (1 + sigmoid(-0.25))] for s in S])


def test_small_has_one_gate_per_sample():
    weight = [0.1, 0.2, 0.3, -0.4]  # first two act on x, last two on S
    tokens = [
        sigmoid(sum(w * v for w, v in zip(weight, [*x, *s], strict=True)) + 1.0) for x, s in zip(X, S, strict=True)
    ]
    got = call(granularity="small", gate_weight=[weight], gate_bias=[1.0])
    close(got, [[sum(tokens) / 2 * v for v in s] for s in S])
    mask = torch.tensor([[True, False]])
    got = call(granularity="small", gate_weight=[weight], gate_bias=[1.0], padding_mask=mask)
    close(got, [[tokens[0] * v for v in s] for s in S])


def test_parallel_modification_reads_x():
    z = [x[0] - x[1] + 0.5 for x in X]
    close(
        call(placement="parallel"),
        [[h[0] + 2 * gelu_tanh(a), h[1] + gelu_tanh(a) - 1] for h, a in zip(H, z, strict=True)],
    )


def test_residual_and_norms():
    y = [[a + b for a, b in zip(x, s, strict=True)] for x, s in zip(X, S, strict=True)]
    close(call(residual=True), y)
    centred = [[v - sum(row) / 2 for v in row] for row in y]
    unit = [[v / math.sqrt((row[0] ** 2 + row[1] ** 2) / 2) for v in row] for row in centred]
    got = call(residual=True, norm="layer", norm_weight=[2.0, 3.0], norm_bias=[0.5, 0.0], eps=0.0)
    close(got, [[2 * row[0] + 0.5, 3 * row[1]] for row in unit])
    unit = [[v / math.sqrt((row[0] ** 2 + row[1] ** 2) / 2) for v in row] for row in y]
    close(call(residual=True, norm="rms", norm_weight=[2.0, 3.0], eps=0.0), [[2 * row[0], 3 * row[1]] for row in unit])


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_pair_is_a_block_diagonal_up_projection(heads):
    torch.manual_seed(0)
    z, weight, bias = torch.randn(5, 8), torch.randn(12, 8 // heads), torch.randn(12)
    blocks = torch.block_diag(*weight.chunk(heads))
    torch.testing.assert_close(reference.block_diagonal_linear(z, weight, bias, heads), z @ blocks.T + bias)


def test_philox_known_answer():
    # Random123's known answers for philox4x32 with 7 rounds, counter 0, key 0.
    words = [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]
    assert reference.philox_uniform(0, 4).tolist() == [word >> 8 for word in words]


def test_dropout_mask_keeps_the_right_share():
    for p in (0.1, 0.5, 0.9):
        mask = reference.dropout_mask(7, (1000, 100), p, torch.float32)
        kept = mask != 0
        assert abs(kept.float().mean().item() - (1 - p)) < 0.005
        torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / (1 - p)))
    other = reference.dropout_mask(8, (1000, 100), 0.5, torch.float32)
    agree = ((other != 0) == (reference.dropout_mask(7, (1000, 100), 0.5, torch.float32) != 0)).float().mean()
    assert abs(agree.item() - 0.5) < 0.01
