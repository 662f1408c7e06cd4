"""Losses of retrieval against plain definitions, on a few numbers."""

import math

import pytest
import torch

from petx.losses import contrastive_loss, hard_negatives
from petx.models import Temperature


def same_of(images):
    place = torch.tensor(images)
    return place[:, None] == place


def test_contrastive_loss_by_hand():
    # Three pairs, the first two of one image: either of its captions is right, each with half of the weight.
    s, same = torch.tensor([[2.0, 1.0, 0.0], [0.5, 1.5, -1.0], [0.0, 0.3, 0.7]]), same_of([5, 5, 8])
    wanted = 0.0
    for direction in (s.tolist(), s.T.tolist()):
        for i, row in enumerate(direction):
            total = sum(map(math.exp, row))
            right = [0, 1] if i < 2 else [2]
            wanted -= sum(math.log(math.exp(row[j]) / total) for j in right) / len(right)
    assert contrastive_loss(s, same).item() == pytest.approx(wanted / 6)
    alone = same_of([0, 1, 2])
    labels = torch.arange(3)
    cross = torch.nn.functional.cross_entropy
    torch.testing.assert_close(contrastive_loss(s, alone), (cross(s, labels) + cross(s.T, labels)) / 2)
    assert contrastive_loss(s[:1, :1], alone[:1, :1]) == 0  # one pair has nothing to be compared with


def test_contrastive_loss_has_its_gradient():
    s = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: contrastive_loss(x, same_of([1, 2, 1, 3])), s)


def test_negatives_are_never_of_the_same_image():
    torch.manual_seed(0)
    images = [0, 0, 1, 2, 2, 2]
    similarity = 30 * torch.randn(6, 6)  # so that softmax underflows
    for _ in range(20):
        left, right = hard_negatives(similarity, same_of(images))
        assert len(left) == 12 and left[:6].tolist() == right[6:].tolist() == list(range(6))
        assert all(images[i] != images[j] for i, j in zip(left.tolist(), right.tolist(), strict=True))
    assert [len(part) for part in hard_negatives(similarity[:2, :2], same_of([0, 0]))] == [0, 0]


def test_hard_negatives_come_as_often_as_softmax_says():
    torch.manual_seed(0)
    similarity = torch.tensor([[9.0, 0.0, math.log(3)], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    drawn = torch.stack([hard_negatives(similarity, same_of([0, 1, 2]))[1][0] for _ in range(2000)])
    assert (drawn == 2).float().mean().item() == pytest.approx(0.75, abs=0.03) and not (drawn == 0).any()


@pytest.mark.parametrize(
    "similarity, same, message",
    [
        (torch.zeros(2, 3), same_of([0, 1]), r"similarity must be \[B, B\] with B at least 1, got \[2, 3\]"),
        (torch.zeros(2, 2).long(), same_of([0, 1]), "similarity must be floating"),
        (torch.zeros(2, 2), same_of([0, 1, 2]), r"same must be bool \[2, 2\] with a true diagonal"),
        (torch.zeros(2, 2), ~same_of([0, 1]), "a true diagonal"),
        (torch.zeros(2, 2), None, "same must be a bool tensor"),
    ],
)
@pytest.mark.parametrize("function", [contrastive_loss, hard_negatives])
def test_what_does_not_fit_is_named(function, similarity, same, message):
    with pytest.raises(ValueError, match=message):
        function(similarity, same)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_negatives_of_what_is_not_finite_are_refused(value):
    similarity = torch.tensor([[1.0, value], [value, 0.0]])
    with pytest.raises(ValueError, match="hard_negatives: similarity must be finite, got 2 of 4 values that are not"):
        hard_negatives(similarity, same_of([0, 1]))


def test_temperature_begins_at_that_of_clip_and_stays_above_its_least():
    layer = Temperature()
    torch.testing.assert_close(layer(torch.tensor([0.7])), torch.tensor([10.0]))
    with torch.no_grad():
        layer.log_scale.fill_(50.0)
    torch.testing.assert_close(layer.eval()(torch.tensor([0.5])), torch.tensor([50.0]))
    assert layer.log_scale == 50.0  # evaluation changes nothing
    layer.train()(torch.tensor([0.5])).sum().backward()
    assert layer.log_scale.grad == pytest.approx(50.0)  # what stands at its bound can come back
