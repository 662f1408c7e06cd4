"""PETAL's score-based information bottleneck (arXiv 2312.12458) as a term beside the language model's loss."""

from typing import Any

import torch
from torch import Tensor, nn

from petx._checks import check_choice, check_finite, check_flag, check_size, check_tensor, is_integer, refuse
from petx.losses.labels import LabelBag, label_bag
from petx.losses.mutual_information import CLUB, MINE, InfoNCE

__all__ = ["InformationBottleneck"]

KINDS = ("authors", "corrected", "variational")
ESTIMATORS = {"club": CLUB, "mine": MINE, "infonce": InfoNCE}
DEFAULTS = {"authors": ("club", "mine"), "corrected": ("infonce", "club")}


class InformationBottleneck(nn.Module):
    r"""A term that trades what the query features Z say about the target Y against what they keep of the image X
    (PETAL, arXiv 2312.12458, the score-based information bottleneck).

    With :math:`\bar z, \bar x` the means over queries and patches and :math:`\bar y` the mean one-hot of the target
    tokens, added to the language model's loss:

    * ``"authors"``: :math:`s\,\kappa\,(\hat I(\bar z;\bar y) - \eta\,\hat I(\bar x;\bar z))` with :class:`CLUB` for the
      first and :class:`MINE` for the second, everything trained jointly by this one term, as the authors' code did. Its
      sign ``sign=1`` is theirs: minimised with κ > 0 it *lowers* I(Z;Y); ``sign=-1`` turns it.
    * ``"corrected"``: :math:`\kappa\,(-\hat I(\bar z;\bar y) + \eta\,\hat I(\bar z;\bar x))`, a lower bound
      (:class:`InfoNCE` or :class:`MINE`) of what is raised and an upper one (:class:`CLUB`) of what is lowered. The
      term moves the features alone, through estimators whose parameters it sees as constants. Each estimator learns by
      its own ``objective``, the bound of a lower bound and the log-likelihood of CLUB's q, on detached features and
      with weight 1; this adds to the gradients and nothing to the value.
    * ``"variational"``: :math:`\kappa\,\eta\,\mathrm{KL}(p(z \mid x)\,\|\,N(0, I))`, an upper bound of I(Z;X), with
      :math:`p(z \mid x) = N(z, \mathrm{diag}\,\sigma^2)` and σ learnt; the language model's loss supplies I(Z;Y). The
      bound is that of what the language model reads only if that is :meth:`sample` of z. Summed over queries and
      features, so pass all of Z.

    Args:
        z_features, x_features, vocabulary: widths of z, x and of the target's one-hot.
        estimator: one of the three.
        eta: the trade-off η.
        kappa: κ; default 0.1, and 0 if it is learnable.
        learnable_kappa: make κ a parameter (``"authors"`` only). The term is then unbounded below: κ follows the sign
            of the bracket.
        sign: s, 1 or -1 (``"authors"`` only).
        ignored: what -100 in the labels means: ``"skip"`` or ``"as_zero"`` (released), see :func:`label_bag`.
        label_estimator, input_estimator: in place of the default for Z–Y and Z–X: ``"club"``, ``"mine"``,
            ``"infonce"``, or a module ``(first, second) -> scalar`` with a method ``objective`` of the same arguments;
            it is given z̄ first (x̄ first for the input estimator of ``"authors"``) and, for Z–Y, a :class:`LabelBag`.
        label_hidden, input_hidden: their hidden widths; default 32 for CLUB, 64 otherwise.

    Shape: ``z [B, Q, z_features]`` or ``[B, z_features]``, ``x [B, P, x_features]`` or ``[B, x_features]``, ``labels
    [B, L]`` int64; returns a scalar in the parameters' dtype. Any floating dtype; autocast does not reach the
    estimators. A batch of one gives 0 for the first two kinds, whose estimators compare samples. Nothing of size
    ``[B, vocabulary]`` is made.

    Raises ValueError naming the argument, what came and what was wanted.
    """

    def __init__(
        self,
        z_features: int,
        x_features: int,
        vocabulary: int,
        *,
        estimator: str = "authors",
        eta: float = 0.1,
        kappa: float | None = None,
        learnable_kappa: bool = False,
        sign: int = 1,
        ignored: str = "skip",
        label_estimator: str | nn.Module | None = None,
        input_estimator: str | nn.Module | None = None,
        label_hidden: int | None = None,
        input_hidden: int | None = None,
    ) -> None:
        super().__init__()
        _check_options(estimator, eta, kappa, learnable_kappa, sign, ignored)
        check_size("InformationBottleneck", z_features=z_features, x_features=x_features, vocabulary=vocabulary)
        self.z_features, self.x_features, self.vocabulary = z_features, x_features, vocabulary
        self.estimator, self.eta, self.sign, self.ignored = estimator, float(eta), sign, ignored
        kappa = (0.0 if learnable_kappa else 0.1) if kappa is None else float(kappa)
        self.kappa = nn.Parameter(torch.tensor(kappa)) if learnable_kappa else kappa
        if estimator == "variational":
            if label_estimator is not None or input_estimator is not None:
                raise ValueError("InformationBottleneck: 'variational' takes no label_estimator or input_estimator")
            for name, hidden in (("label_hidden", label_hidden), ("input_hidden", input_hidden)):
                if hidden is not None:
                    refuse("InformationBottleneck", name, "None for 'variational', which has no such estimator", hidden)
            # Small noise at first, so that a trained host still works when its features are sampled.
            self.log_variance = nn.Parameter(torch.full((z_features,), -4.0))
            return
        label_default, input_default = DEFAULTS[estimator]
        widths = (x_features, z_features) if estimator == "authors" else (z_features, x_features)
        label_estimator = label_default if label_estimator is None else label_estimator
        input_estimator = input_default if input_estimator is None else input_estimator
        self.label_estimator = _make("label_estimator", label_estimator, z_features, vocabulary, label_hidden)
        self.input_estimator = _make("input_estimator", input_estimator, *widths, input_hidden)

    def forward(self, z: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """The term, a scalar, of ``z [B, Q, z_features]``, ``x [B, P, x_features]`` and ``labels [B, L]``.

        z and x may come averaged, ``[B, features]``.
        """
        self._check(z, x, labels)
        with torch.autocast(z.device.type, enabled=False):
            dtype = next(self.parameters()).dtype
            z, x = z.to(dtype), x.to(dtype)
            if self.estimator == "variational":
                return self.kappa * self.eta * self.divergence(z)
            z, x = (t.mean(1) if t.dim() == 3 else t for t in (z, x))
            bag = label_bag(labels, self.vocabulary, ignored=self.ignored, dtype=dtype)
            if self.estimator == "authors":
                bracket = self.label_estimator(z, bag) - self.eta * self.input_estimator(x, z)
                return self.sign * self.kappa * bracket
            term = self.eta * _as_constant(self.input_estimator, z, x) - _as_constant(self.label_estimator, z, bag)
            fit = -_objective(self.label_estimator, z.detach(), bag)
            fit = fit - _objective(self.input_estimator, z.detach(), x.detach())
            return self.kappa * term + (fit - fit.detach())

    def divergence(self, z: Tensor) -> Tensor:
        r"""``KL(N(z, diag σ²) || N(0, I)) = ½ Σ (z² + σ² - 1 - log σ²)``, summed per sample, averaged over samples."""
        values = z.square() + self.log_variance.exp() - 1 - self.log_variance
        return 0.5 * values.flatten(1).sum(1).mean()

    def sample(self, z: Tensor) -> Tensor:
        """``z + σ ε`` in training, ε from torch's generator; ``z`` itself in evaluation. ``"variational"`` only."""
        if self.estimator != "variational":
            raise ValueError(f"InformationBottleneck: sample is for estimator='variational', got {self.estimator!r}")
        if not self.training:
            return z
        return z + (0.5 * self.log_variance).exp().to(z.dtype) * torch.randn_like(z)

    def _check(self, z: Tensor, x: Tensor, labels: Tensor) -> None:
        for name, tensor in (("z", z), ("x", x), ("labels", labels)):
            check_tensor("InformationBottleneck", name, tensor, "a tensor")
        if labels.dim() != 2:
            raise ValueError(f"InformationBottleneck: labels must be [B, L], got {list(labels.shape)}")
        for name, tensor, features in (("z", z, self.z_features), ("x", x, self.x_features)):
            if tensor.dim() not in (2, 3) or tensor.shape[-1] != features or not tensor.is_floating_point():
                raise ValueError(
                    f"InformationBottleneck: {name} must be floating [B, any, {features}] or [B, {features}], "
                    f"got {tensor.dtype} {list(tensor.shape)}"
                )
            if min(tensor.shape) < 1:
                raise ValueError(f"InformationBottleneck: {name} must not be empty, got {list(tensor.shape)}")
        if not z.shape[0] == x.shape[0] == labels.shape[0]:
            raise ValueError(
                "InformationBottleneck: z, x and labels must have one batch, "
                f"got {z.shape[0]}, {x.shape[0]} and {labels.shape[0]} samples"
            )
        if not z.device == x.device == labels.device:
            raise ValueError(
                f"InformationBottleneck: z, x and labels must be on one device, got {z.device}, {x.device} and "
                f"{labels.device}"
            )

    def extra_repr(self) -> str:
        shown = f"estimator={self.estimator!r}, eta={self.eta}, sign={self.sign}, ignored={self.ignored!r}"
        return shown + ("" if isinstance(self.kappa, nn.Parameter) else f", kappa={self.kappa}")


def _as_constant(estimator: nn.Module, first: Tensor, second: Tensor | LabelBag) -> Tensor:
    """The estimate with gradients to its arguments alone."""
    constants = {name: parameter.detach() for name, parameter in estimator.named_parameters()}
    return torch.func.functional_call(estimator, constants, (first, second))


def _objective(estimator: Any, first: Tensor, second: Tensor | LabelBag) -> Tensor:
    return estimator.objective(first, second)


def _make(name: str, estimator: str | nn.Module, first: int, second: int, hidden: int | None) -> nn.Module:
    if isinstance(estimator, nn.Module):
        if hidden is not None:
            owner, size = "InformationBottleneck", name.replace("estimator", "hidden")
            refuse(owner, size, f"None beside a {name} that is a module", hidden)
        return estimator
    if not isinstance(estimator, str) or estimator not in ESTIMATORS:
        raise ValueError(
            f"InformationBottleneck: {name} must be a module or one of {', '.join(map(repr, ESTIMATORS))}, "
            f"got {estimator!r}"
        )
    if hidden is not None:
        check_size("InformationBottleneck", **{name.replace("estimator", "hidden"): hidden})
    return ESTIMATORS[estimator](first, second, **({} if hidden is None else {"hidden": hidden}))


def _check_options(
    estimator: str, eta: float, kappa: float | None, learnable_kappa: bool, sign: int, ignored: str
) -> None:
    owner = "InformationBottleneck"
    check_choice(owner, "estimator", estimator, KINDS)
    check_finite(owner, eta=eta, **({} if kappa is None else {"kappa": kappa}))
    check_flag(owner, learnable_kappa=learnable_kappa)
    if not is_integer(sign) or sign not in (1, -1):
        refuse(owner, "sign", "1 or -1", sign)
    check_choice(owner, "ignored", ignored, ("skip", "as_zero"))
    if estimator != "authors" and (learnable_kappa or sign != 1):
        raise ValueError(
            f"InformationBottleneck: learnable_kappa and sign belong to estimator='authors', not {estimator!r}, whose "
            "direction is fixed"
        )
