"""The information bottleneck, its estimators and the aggregation of instructions, against dense and closed forms."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from petx.losses import CLUB, MINE, InfoNCE, InformationBottleneck, label_bag
from petx.models import aggregate_instructions


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.numel())
        return out


def dense(labels, vocabulary, ignored):
    """The mean one-hot ``[B, vocabulary]`` as the authors' code makes it, or over the positions that count."""
    hot = torch.nn.functional.one_hot(labels.clamp(min=0), vocabulary).double()
    if ignored == "as_zero":
        return hot.mean(1)
    counts = (labels != -100).double()
    return (hot * counts[..., None]).sum(1) / counts.sum(1, keepdim=True).clamp(min=1)


def bottleneck_inputs(seed=0, batch=5, vocabulary=40, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, 3, 6, generator=g, dtype=dtype, requires_grad=True)
    x = torch.randn(batch, 4, 7, generator=g, dtype=dtype, requires_grad=True)
    labels = torch.randint(vocabulary, (batch, 8), generator=g)
    labels[:, 1] = labels[:, 0]  # repeated tokens
    labels[1, 5:], labels[2] = -100, -100  # padded, and without any target
    return z, x, labels


def test_paper_sizes():
    loss = InformationBottleneck(768, 1408, 32_100, learnable_kappa=True)
    counts = [sum(p.numel() for p in part.parameters()) for part in (loss.label_estimator, loss.input_estimator, loss)]
    assert counts == [2_167_816, 139_393, 2_167_816 + 139_393 + 1]
    assert loss.kappa.item() == 0


@pytest.mark.parametrize("ignored", ["skip", "as_zero"])
def test_bag_is_the_mean_one_hot(ignored):
    *_, labels = bottleneck_inputs()
    bag = label_bag(labels, 40, ignored=ignored, dtype=torch.float64)
    wanted = dense(labels, 40, ignored)
    assert torch.allclose(torch.zeros(5, 40).double().scatter_add(1, bag.columns, bag.weights), wanted)
    counts = bag.weights > 0
    assert torch.allclose(bag.means[counts], wanted.gather(1, bag.columns)[counts])


@pytest.mark.parametrize("ignored", ["skip", "as_zero"])
@pytest.mark.parametrize("quantity", ["bound", "objective", "mine", "infonce"])
def test_sparse_is_dense(ignored, quantity):
    torch.manual_seed(0)
    z, _, labels = bottleneck_inputs()
    z = z.detach().mean(1).requires_grad_()
    kind = {"mine": MINE, "infonce": InfoNCE}.get(quantity, CLUB)
    estimator = kind(6, 40).double()
    results = []
    for second in (label_bag(labels, 40, ignored=ignored, dtype=torch.float64), dense(labels, 40, ignored)):
        torch.manual_seed(3)  # the same permutation or draws
        if quantity == "objective":
            value = estimator.objective(z, second, samples=None)
        else:
            value = estimator(z, second)
        results.append((value, *torch.autograd.grad(value, [z, *estimator.parameters()])))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)
    assert abs(results[0][0]) > 1e-3 and all(g.abs().max() > 0 for g in results[0][1:3])


def test_sampled_objective_is_unbiased():
    torch.manual_seed(0)
    z, _, labels = bottleneck_inputs()
    club, bag = CLUB(6, 40).double(), label_bag(labels, 40, dtype=torch.float64)
    z = z.detach().mean(1)
    with torch.no_grad():
        drawn = torch.stack([club.objective(z, bag, samples=8) for _ in range(2000)])
        exact = club.objective(z, bag, samples=None)
    assert abs(drawn.mean() - exact) < 4 * drawn.std() / len(drawn) ** 0.5


@pytest.mark.parametrize("estimator", ["authors", "corrected"])
def test_nothing_is_vocabulary_wide(estimator):
    """Batch 64, a vocabulary of 20,000: a parameter's gradient is the largest tensor; [B, V] would be twice that."""
    batch, vocabulary, hidden = 64, 20_000, 32
    loss = InformationBottleneck(6, 7, vocabulary, estimator=estimator, label_hidden=hidden)
    z = torch.randn(batch, 2, 6, requires_grad=True)
    labels = torch.randint(vocabulary, (batch, 4))
    with Largest() as forward:
        out = loss(z, torch.randn(batch, 3, 7), labels)
    with Largest() as backward:
        out.backward()
    assert max(forward.elements, backward.elements) <= (vocabulary + 6) * hidden  # a parameter, seen or its gradient
    club = CLUB(6, vocabulary, hidden)
    mean, bag = z.detach().mean(1), label_bag(labels, vocabulary)
    with torch.no_grad(), Largest() as forward:
        club(mean, bag)
    assert forward.elements == batch * 4 * hidden  # the gathered rows


def correlated(rho, batch, width=2):
    a = torch.randn(batch, width)
    return a, rho * a + math.sqrt(1 - rho**2) * torch.randn(batch, width)


def fitted(estimator, rho, steps=400, batch=512):
    optimizer = torch.optim.Adam(estimator.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (-estimator.objective(*correlated(rho, batch))).backward()
        optimizer.step()
    with torch.no_grad():
        return torch.stack([estimator(*correlated(rho, batch)) for _ in range(32)]).mean().item()


@pytest.mark.parametrize("rho", [0.0, 0.7])
@pytest.mark.parametrize("kind", [MINE, InfoNCE, CLUB])
def test_gaussian_information(kind, rho):
    """Two correlated pairs: I = -log(1 - ρ²); CLUB with the true q is 2·ρ²/(1 - ρ²), above it."""
    torch.manual_seed(0)
    exact = -math.log(1 - rho**2)
    batch = 64 if kind is InfoNCE else 512
    got = fitted(kind(2, 2), rho, batch=batch)
    if kind is CLUB:
        bound = 2 * rho**2 / (1 - rho**2)
        assert got == pytest.approx(bound, abs=0.05 + 0.1 * bound) and got > exact - 0.05
    else:
        assert exact - 0.05 - 0.12 * exact < got < exact + 0.05


def channel_step(loss, encoder, optimizer, batch=64):
    """One step on X = (s, n): the label is the sign of s, n is of no use. Z = encoder weights times X plus noise."""
    x = torch.randn(batch, 2)
    labels = (x[:, :1] > 0).long()
    optimizer.zero_grad()
    z = x * encoder + torch.randn(batch, 2)
    loss(z, x, labels).backward()
    optimizer.step()


def trained_channel(steps, lr, **options):
    """The encoder's weights for s and n after training by the term alone; the estimators learn as it says."""
    torch.manual_seed(0)
    loss = InformationBottleneck(2, 2, 2, **options)
    encoder = torch.nn.Parameter(torch.full((2,), 0.5))
    optimizer = torch.optim.Adam([{"params": loss.parameters(), "lr": 5e-3}, {"params": [encoder], "lr": lr}])
    for _ in range(steps):
        channel_step(loss, encoder, optimizer)
    return encoder.detach().abs().tolist()


def test_corrected_keeps_what_tells_the_label():
    useful, useless = trained_channel(200, 1e-2, estimator="corrected", eta=0.1, kappa=1.0)
    assert useful > 1.2 and useless < 0.3


def test_variational_forgets_the_image():
    useful, useless = trained_channel(100, 1e-2, estimator="variational", eta=1.0, kappa=1.0)
    assert useful < 0.2 and useless < 0.2  # the language model's loss would hold the first


@pytest.mark.parametrize("sign", [1, -1])
def test_authors_sign(sign):
    """As released the term falls with I(Z;Y); with sign = -1 it rises: the signal's weight follows it."""
    torch.manual_seed(0)
    loss = InformationBottleneck(2, 2, 2, kappa=1.0, eta=0.0, sign=sign)
    optimizer = torch.optim.Adam(loss.label_estimator.parameters(), lr=5e-3)
    encoder = torch.tensor([1.0, 1.0], requires_grad=True)
    for _ in range(200):  # a fitted q first: its gradient then says what the term wants of the features
        x = torch.randn(256, 2)
        bag = label_bag((x[:, :1] > 0).long(), 2)
        optimizer.zero_grad()
        (-loss.label_estimator.objective(x, bag)).backward()
        optimizer.step()
    x = torch.randn(4096, 2)
    value = loss(x * encoder, x, (x[:, :1] > 0).long())
    (gradient,) = torch.autograd.grad(value, encoder)
    assert value * sign > 0.3
    assert gradient[0] * sign > 0.05 and gradient[0].abs() > 3 * gradient[1].abs()


def test_authors_form_is_the_formula():
    torch.manual_seed(0)
    z, x, labels = bottleneck_inputs()
    loss = InformationBottleneck(6, 7, 40, eta=0.2, kappa=0.3, sign=-1, ignored="as_zero").double()
    torch.manual_seed(1)
    got = loss(z, x, labels)
    torch.manual_seed(1)
    permutation, draws = torch.randperm(5), torch.randint(5, (5,))
    club = loss.label_estimator(z.mean(1), dense(labels, 40, "as_zero"), permutation)
    mine = loss.input_estimator(x.mean(1), z.mean(1), draws)
    torch.testing.assert_close(got, -0.3 * (club - 0.2 * mine))
    torch.manual_seed(1)
    assert torch.equal(got, loss(z, x, labels))


def test_corrected_fits_and_measures_apart():
    """The value is the term alone; the features see the estimators as constants; κ = 0 still fits them."""
    torch.manual_seed(0)
    z, x, labels = bottleneck_inputs()
    loss = InformationBottleneck(6, 7, 40, estimator="corrected", kappa=0.0).double()
    value = loss(z, x, labels)
    value.backward()
    assert value == 0 and z.grad.abs().max() == 0 and x.grad.abs().max() == 0
    assert all(p.grad.abs().max() > 0 for p in loss.input_estimator.parameters())
    fit = -loss.input_estimator.objective(z.mean(1), x.mean(1))
    wanted = torch.autograd.grad(fit, list(loss.input_estimator.parameters()))
    for parameter, gradient in zip(loss.input_estimator.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("estimator", ["authors", "corrected", "variational"])
def test_one_sample(estimator):
    z, x, labels = bottleneck_inputs(batch=3)
    loss = InformationBottleneck(6, 7, 40, estimator=estimator).double()
    value = loss(z[:1], x[:1], labels[:1])
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(z.grad).all()
    assert estimator == "variational" or (value.abs() < 1e-12 and z.grad.abs().max() < 1e-12)


@pytest.mark.parametrize("label", ["club", "mine", "infonce"])
def test_estimators_are_pluggable(label):
    z, x, labels = bottleneck_inputs()
    loss = InformationBottleneck(
        6, 7, 40, estimator="corrected", label_estimator=label, input_estimator=CLUB(6, 7, hidden=3), label_hidden=5
    ).double()
    assert loss.label_estimator.hidden == 5 and loss.input_estimator.hidden == 3
    assert torch.isfinite(loss(z, x, labels))


def test_autocast_and_half_precision_stay_in_float():
    torch.manual_seed(0)
    z, x, labels = bottleneck_inputs(dtype=torch.float32)
    loss = InformationBottleneck(6, 7, 40)
    torch.manual_seed(1)
    wanted = loss(z, x, labels)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        got = loss(z, x, labels)
    assert got.dtype == torch.float32 and torch.equal(got, wanted)
    assert loss(z.bfloat16(), x.half(), labels).dtype == torch.float32


def test_aggregate():
    torch.manual_seed(0)
    z = [torch.randn(2, 5, 8, dtype=torch.float64) for _ in range(3)]
    assert torch.allclose(aggregate_instructions(z), (z[0] + z[1] + z[2]) / 3)
    for scale, divisor in (("width", 8), ("sqrt_width", 8**0.5), (2.5, 2.5)):
        scores = [torch.softmax((z[0] / divisor) @ other.transpose(1, 2), -1) for other in z[1:]]
        wanted = (z[0] + scores[0] @ z[1] + scores[1] @ z[2]) / 3
        assert torch.allclose(aggregate_instructions(z, "attention_score", scale), wanted)
    assert aggregate_instructions(z[:1], "attention_score") is z[0]


def test_attention_score_picks_what_was_asked_for():
    """Orthogonal queries, a small scale: each query of the first takes its own counterpart of a shuffled second."""
    first = torch.eye(4)[None] * 3
    second = first[:, [2, 0, 3, 1]]
    out = aggregate_instructions([first, second], "attention_score", scale=0.1)
    assert torch.allclose(out, first, atol=1e-6)  # (Z_1 + Z_1) / 2
    assert not torch.allclose(aggregate_instructions([first, second]), first, atol=0.5)


BAD_OPTIONS = [
    (dict(estimator="club"), "estimator"),
    (dict(estimator="corrected", sign=-1), "sign"),
    (dict(estimator="variational", learnable_kappa=True), "learnable_kappa"),
    (dict(sign=0), "sign"),
    (dict(eta=math.nan), "eta"),
    (dict(ignored="drop"), "ignored"),
    (dict(label_estimator="nce"), "label_estimator"),
    (dict(estimator="variational", input_estimator="club"), "input_estimator"),
    (dict(label_hidden=0), "hidden"),
]


@pytest.mark.parametrize("options,named", BAD_OPTIONS)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        InformationBottleneck(6, 7, 40, **options)


BAD_INPUTS = [
    (lambda z, x, y: (z[..., :5], x, y), r"z must be .*\[B, 6\].*got .*\[5, 3, 5\]"),
    (lambda z, x, y: (z, x[0, 0], y), "x must be"),
    (lambda z, x, y: (z, x[:4], y), "one batch"),
    (lambda z, x, y: (z[:0], x[:0], y[:0]), "empty"),
    (lambda z, x, y: (z, x, y.float()), "labels must be int64"),
    (lambda z, x, y: (z, x, y.clamp(min=40)), r"labels must be in \[0, 40\) or -100, got 40"),
]


@pytest.mark.parametrize("change,message", BAD_INPUTS)
def test_bad_inputs(change, message):
    loss = InformationBottleneck(6, 7, 40).double()
    with pytest.raises(ValueError, match=message):
        loss(*change(*bottleneck_inputs()))


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda z: aggregate_instructions([]), "at least one"),
        (lambda z: aggregate_instructions([z, z[:, :2]]), r"features\[1\]"),
        (lambda z: aggregate_instructions([z, z.double()]), r"features\[1\] must be torch.float32"),
        (lambda z: aggregate_instructions([z], "sum"), "method"),
        (lambda z: aggregate_instructions([z], scale=0), "scale"),
        (lambda z: aggregate_instructions([z], scale="root"), "scale"),
    ],
)
def test_bad_aggregation(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(2, 3, 4))
