"""Estimators of mutual information: lower bounds (MINE, InfoNCE) and an upper one (CLUB)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petx._checks import check_size, check_tensor, refuse
from petx.losses.labels import LabelBag

__all__ = ["CLUB", "MINE", "InfoNCE"]

Rows = Sequence[tuple[Tensor, Tensor]]


class _Estimator(nn.Module):
    """Shared: sizes, initialisation (normal Xavier weights, zero biases) and the check of a pair of batches."""

    def __init__(self, first_features: int, second_features: int, hidden: int) -> None:
        super().__init__()
        owner = type(self).__name__
        check_size(owner, first_features=first_features, second_features=second_features, hidden=hidden)
        self.first_features, self.second_features, self.hidden = first_features, second_features, hidden

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal Xavier weights, zero biases."""
        for parameter in self.parameters():
            nn.init.xavier_normal_(parameter) if parameter.dim() > 1 else parameter.zero_()

    def objective(self, first: Tensor, second: Tensor | LabelBag) -> Tensor:
        """What the estimator's own parameters maximise; for a lower bound, the bound itself."""
        return self(first, second)

    def _check(self, first: Tensor, second: Tensor | LabelBag) -> None:
        name = type(self).__name__
        check_tensor(name, "first", first, f"a tensor [B, {self.first_features}]")
        if not isinstance(second, LabelBag):
            check_tensor(name, "second", second, f"a tensor [B, {self.second_features}] or a LabelBag")
        if first.dim() != 2 or first.shape[1] != self.first_features or first.shape[0] < 1:
            raise ValueError(f"{name}: first must be [B >= 1, {self.first_features}], got {list(first.shape)}")
        for which, given in (("first", first), ("second", second)):
            if isinstance(given, Tensor) and not given.is_floating_point():
                refuse(name, which, "floating", given)
        wanted = "a LabelBag of B samples" if isinstance(second, LabelBag) else f"[B, {self.second_features}]"
        fits = isinstance(second, LabelBag) or (second.dim() == 2 and second.shape[1] == self.second_features)
        if isinstance(second, LabelBag) and second.device.type == "cpu":  # on a GPU torch's own assertion says so
            most = int(second.columns.max()) if second.columns.numel() else 0
            if most >= self.second_features:
                raise ValueError(f"{name}: second must have columns below {self.second_features}, got {most}")
        if not fits or second.shape[0] != first.shape[0]:
            raise ValueError(
                f"{name}: second must be {wanted}, B = {first.shape[0]} as in first, got {list(second.shape)}"
            )

    def extra_repr(self) -> str:
        return f"{self.first_features}, {self.second_features}, hidden={self.hidden}"


def _check_order(owner: str, name: str, value: Tensor, count: int, device: torch.device) -> None:
    """``value`` is int64 ``[count]``; on the CPU, of numbers of samples (on a GPU torch's own assertion says so)."""
    check_tensor(owner, name, value, f"a tensor int64 [{count}]")
    if value.dtype != torch.int64 or list(value.shape) != [count] or value.device != device:
        refuse(owner, name, f"int64 [{count}] on {device}", value)
    if device.type == "cpu" and bool(((value < 0) | (value >= count)).any()):
        raise ValueError(f"{owner}: {name} must be in [0, {count}), got {value.tolist()}")


def _product(second: Tensor | LabelBag, weight: Tensor) -> Tensor:
    """``second weight`` for ``weight [second_features, hidden]``; of a bag only the columns that it names are read."""
    if isinstance(second, LabelBag):
        weights = second.weights.to(weight.dtype)
        return F.embedding_bag(second.columns, weight, per_sample_weights=weights, mode="sum")
    return second @ weight


class MINE(_Estimator):
    r"""The Donsker–Varadhan lower bound (MINE, arXiv 1801.04062),
    :math:`\hat I = \frac1B\sum_b T(a_b, b_b) - \bigl(\mathrm{logsumexp}_b\, T(a_{b}, b_{j_b}) - \log B\bigr)`.

    :math:`T(a, b) = w^\top \mathrm{relu}(W [a; b] + c) + d` and j is drawn uniformly with replacement from torch's
    generator. First argument ``[B, first_features]``, second ``[B, second_features]`` or a :class:`LabelBag`; returns a
    scalar. A batch of one gives 0: its only draw is the pair itself.

    Args:
        first_features, second_features: widths of the arguments; of a label bag, the vocabulary.
        hidden: width of T's hidden layer.

    Raises ValueError naming the argument, what came and what was wanted.
    """

    def __init__(self, first_features: int, second_features: int, hidden: int = 64) -> None:
        super().__init__(first_features, second_features, hidden)
        # One weight over both arguments, as released; its second part stays [features, hidden], so that a label bag
        # gathers rows.
        self.weight = nn.Parameter(torch.empty(first_features + second_features, hidden))
        self.bias = nn.Parameter(torch.empty(hidden))
        self.score = nn.Linear(hidden, 1)
        self.reset_parameters()

    def forward(self, first: Tensor, second: Tensor | LabelBag, draws: Tensor | None = None) -> Tensor:
        """The bound, a scalar. ``draws [B]``: the j of the formula, drawn if None."""
        self._check(first, second)
        count = first.shape[0]
        if draws is None:
            draws = torch.randint(count, (count,), device=first.device)
        else:
            _check_order("MINE", "draws", draws, count, first.device)
        first_part, second_part = self.weight.split([self.first_features, self.second_features])
        left, right = first @ first_part + self.bias, _product(second, second_part)
        joint, product = (self.score(F.relu(left + other)).squeeze(1) for other in (right, right[draws]))
        return joint.mean() - (product.logsumexp(0) - math.log(count))


class InfoNCE(_Estimator):
    r"""The lower bound :math:`\hat I = \frac1B\sum_i \bigl(f_{ii} - \mathrm{logsumexp}_j f_{ij}\bigr) + \log B`, never
    above log B (arXiv 1807.03748).

    :math:`f_{ij} = w^\top\mathrm{relu}(W a_i + V b_j + c)`, every pair of the batch: ``[B, B, hidden]`` values. No
    random draws. Arguments as for :class:`MINE`; a batch of one gives 0.

    Raises ValueError naming the argument, what came and what was wanted.
    """

    def __init__(self, first_features: int, second_features: int, hidden: int = 64) -> None:
        super().__init__(first_features, second_features, hidden)
        self.weight = nn.Parameter(torch.empty(first_features + second_features, hidden))
        self.bias = nn.Parameter(torch.empty(hidden))
        self.score = nn.Linear(hidden, 1, bias=False)  # a constant would cancel
        self.reset_parameters()

    def forward(self, first: Tensor, second: Tensor | LabelBag) -> Tensor:
        """The bound, a scalar, for ``first [B, first_features]`` and ``second [B, second_features]`` or a bag."""
        self._check(first, second)
        first_part, second_part = self.weight.split([self.first_features, self.second_features])
        left, right = first @ first_part + self.bias, _product(second, second_part)
        scores = self.score(F.relu(left[:, None] + right[None])).squeeze(2)
        return (scores.diagonal() - scores.logsumexp(1)).mean() + math.log(first.shape[0])


class CLUB(_Estimator):
    r"""The sampled contrastive upper bound (CLUB, arXiv 2006.12013) with a diagonal Gaussian
    :math:`q(b \mid a)`,
    :math:`\hat I = \frac1B \sum_b \log q(b_b \mid a_b) - \log q(b_{\pi(b)} \mid a_b)
    = \frac{1}{2B} \sum_b\sum_c \bigl[-(\mu_{bc}-b_{bc})^2 + (\mu_{bc}-b_{\pi(b)c})^2\bigr] / v_{bc}`.

    :math:`\mu = W_2\,\mathrm{relu}(W_1 a)`, :math:`v = \exp(\tanh(W_4\,\mathrm{relu}(W_3 a))) + 10^{-6}` (biases left
    out), :math:`\pi` a permutation from torch's generator. It is an upper bound only if q is near the true
    conditional, so q is to be fitted by :meth:`objective`, its log-likelihood, not by the bound.

    First argument ``[B, first_features]``, second ``[B, second_features]`` or a :class:`LabelBag`; returns a scalar. A
    batch of one gives 0: its only permutation is the identity.

    Since :math:`-(\mu-y)^2+(\mu-y')^2 = 2\mu(y-y')-y^2+y'^2`, only columns with y or y' non-zero contribute: of a label
    bag the L rows of :math:`W_2, W_4` that it names are gathered per sample, and read once with the sample's own a and
    once with that of the sample it is permuted to. No ``[B, second_features]`` tensor is made.

    Constructor's arguments as for :class:`MINE`. Raises ValueError naming the argument, what came and what was wanted.
    """

    VARIANCE_FLOOR = 1e-6

    def __init__(self, first_features: int, second_features: int, hidden: int = 32) -> None:
        super().__init__(first_features, second_features, hidden)
        self.mean_hidden, self.mean = nn.Linear(first_features, hidden), nn.Linear(hidden, second_features)
        self.variance_hidden, self.variance = nn.Linear(first_features, hidden), nn.Linear(hidden, second_features)
        self.reset_parameters()

    def forward(self, first: Tensor, second: Tensor | LabelBag, permutation: Tensor | None = None) -> Tensor:
        """The bound, a scalar. ``permutation [B]``: the π of the formula, drawn if None."""
        self._check(first, second)
        if permutation is None:
            permutation = torch.randperm(first.shape[0], device=first.device)
        else:
            _check_order("CLUB", "permutation", permutation, first.shape[0], first.device)
        hidden = self._hidden(first)
        if isinstance(second, LabelBag):
            # Pairs (a_b, labels of π(b)) are the pairs (a_π⁻¹(s), labels of s): the rows of s serve both.
            inverse = permutation.argsort()
            rows = self._rows(second.columns)
            own, other = (self._score(second, rows, [h[i] for h in hidden]) for i in (slice(None), inverse))
            return 0.5 * (own - other).mean()
        mean, variance = self._gaussian(hidden)
        return 0.5 * (((mean - second[permutation]).square() - (mean - second).square()) / variance).sum(1).mean()

    def objective(self, first: Tensor, second: Tensor | LabelBag, samples: int | None = 1024) -> Tensor:
        r"""The log-likelihood :math:`\frac1B\sum_b\log q(b_b \mid a_b)` without its constant; maximised by a fitted q.

        Of a label bag the sum over the vocabulary is that over ``samples`` columns, drawn uniformly from torch's
        generator and shared by the batch, with the bag's own columns exact: an unbiased estimate of ``[B, samples]``
        values. ``samples=None`` takes every column, ``[B, second_features]``.
        """
        self._check(first, second)
        if samples is not None:
            check_size("CLUB", samples=samples)
        hidden = self._hidden(first)
        if not isinstance(second, LabelBag):
            mean, variance = self._gaussian(hidden)
            return -0.5 * ((mean - second).square() / variance + variance.log()).sum(1).mean()
        columns, share = None, 1.0
        if samples is not None and samples < self.second_features:
            columns = torch.randint(self.second_features, (samples,), device=first.device)
            share = self.second_features / samples
        mean, variance = self._gaussian(hidden, columns)
        absent = -0.5 * (mean.square() / variance + variance.log()).sum(1)
        return (share * absent + 0.5 * self._score(second, self._rows(second.columns), hidden)).mean()

    def _hidden(self, first: Tensor) -> tuple[Tensor, Tensor]:
        return F.relu(self.mean_hidden(first)), F.relu(self.variance_hidden(first))

    def _gaussian(self, hidden: Sequence[Tensor], columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        layers: list[tuple[Tensor, Tensor]] = [(layer.weight, layer.bias) for layer in (self.mean, self.variance)]
        if columns is not None:
            layers = [(weight[columns], bias[columns]) for weight, bias in layers]
        mean, log_variance = (F.linear(h, *layer) for h, layer in zip(hidden, layers, strict=True))
        return mean, log_variance.tanh().exp() + self.VARIANCE_FLOOR

    def _rows(self, columns: Tensor) -> Rows:
        """Rows of both last layers for ``columns [B, L]``: (weight [B, L, hidden], bias [B, L]) twice."""
        last = (self.mean, self.variance)
        return [(F.embedding(columns, layer.weight), layer.bias[columns]) for layer in last]

    def _score(self, bag: LabelBag, rows: Rows, hidden: Sequence[Tensor]) -> Tensor:
        r"""``Σ_c (2 μ_c - y_c) y_c / v_c`` of every sample ``[B]``; a repeated column is split among its positions."""
        mean, log_variance = (
            (weight @ h[:, :, None]).squeeze(2) + bias for (weight, bias), h in zip(rows, hidden, strict=True)
        )
        variance = log_variance.tanh().exp() + self.VARIANCE_FLOOR
        return (bag.weights.to(mean.dtype) * (2 * mean - bag.means.to(mean.dtype)) / variance).sum(1)
