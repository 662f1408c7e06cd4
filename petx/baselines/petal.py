"""PETAL itself, and PETAL without each of its parts."""

import dataclasses
from typing import Any, ClassVar

from peft import get_peft_model
from torch import nn

from petx.baselines._sizes import ESTIMATORS
from petx.baselines.base import Baseline
from petx.errors import UserError
from petx.hosts import Host
from petx.losses import InformationBottleneck
from petx.tuners import PetalConfig


class Petal(Baseline):
    """PETAL: a mode approximation of the projections, instruction experts, query transformation."""

    name, title, colour, order = "petal", "PETAL", "#D55E00", 20
    methods = ("petal",)
    own = (
        *("form", "rank", "image_rank", "core", "threshold", "threshold_per_rank", "adapter_dropout", "shared_mask"),
        *("experts", "expert_rank", "expert_gate", "expert_top_k", "expert_scope", "expert_alpha", "expert_beta"),
        *("context", "query_transform", "ib", "ib_weight", "ib_eta", "ib_learnable", "ib_sign", "ib_vocabulary"),
    )

    def reads(self, settings: Any) -> set[str]:
        unread = set()
        if settings.experts == 0:
            unread |= {name for name in self.own if name.startswith("expert_")}
        if settings.threshold == "none":
            unread |= {"threshold_per_rank"}
        if settings.adapter_dropout == 0:
            unread |= {"shared_mask"}
        if settings.ib == "off":
            unread |= {name for name in self.own if name.startswith("ib_")}
        elif settings.ib_learnable:
            unread |= {"ib_weight"}
        return super().reads(settings) - unread

    def unread_on(self, host: type[Host], settings: Any) -> set[str]:
        return super().unread_on(host, settings) | (set() if host.has_qformer else {"image_rank"})

    def build(self, host: type[Host], model: Any, settings: Any) -> nn.Module:
        tuned = self.sized(host, model, settings)
        if settings.ib != "off":
            tuned.add_module(ESTIMATORS, information_bottleneck(model.config, settings).to(model.device))
            if settings.ib == "variational":  # whose bound is that of what the language model reads
                estimators: Any = tuned.get_submodule(ESTIMATORS)
                model.language_projection.register_forward_pre_hook(lambda _, inputs: estimators.sample(*inputs))
        return tuned

    def sized(self, host: type[Host], model: Any, settings: Any) -> nn.Module:
        """Without the information bottleneck's estimators: what other baselines are made as large as."""
        return get_peft_model(model.requires_grad_(False), petal_config(host, settings))


class Aurora(Petal):
    """Aurora, PETAL's predecessor: the mode approximation alone, without experts, threshold and bottleneck loss."""

    name, title, colour, order = "aurora", "Aurora (rank {rank})", "#999933", 21
    without: ClassVar[dict[str, Any]] = dict(experts=0, threshold="none", ib="off")

    def reads(self, settings: Any) -> set[str]:
        return super().reads(dataclasses.replace(settings, **self.without))

    def check(self, settings: Any) -> None:
        if all(getattr(settings, name) == value for name, value in self.without.items()):
            raise UserError("arm aurora would be PETAL itself: experts=0, threshold=none and ib=off already")

    def build(self, host: type[Host], model: Any, settings: Any) -> nn.Module:
        return super().build(host, model, dataclasses.replace(settings, **self.without))


class Ablation(Petal):
    """PETAL with another value of one setting; of no use if it has that value already."""

    group = "ablations"
    setting: ClassVar[str]
    value: ClassVar[Any]

    def applies(self, settings: Any) -> bool:
        return getattr(settings, self.setting) != self.value

    def reads(self, settings: Any) -> set[str]:
        return super().reads(dataclasses.replace(settings, **{self.setting: self.value}))

    def check(self, settings: Any) -> None:
        if not self.applies(settings):
            raise UserError(f"arm {self.name} would be PETAL itself: {self.setting} is {self.value!r} already")

    def build(self, host: type[Host], model: Any, settings: Any) -> nn.Module:
        return super().build(host, model, dataclasses.replace(settings, **{self.setting: self.value}))


class NoExperts(Ablation):
    """PETAL without experts."""

    name, title, colour, order = "no-experts", "PETAL without experts", "#F0E442", 70
    setting, value = "experts", 0


class NoGate(Ablation):
    """PETAL with all experts weighted equally."""

    name, title, colour, order = "no-gate", "PETAL, experts without gate", "#8B4513", 71
    setting, value = "expert_gate", "uniform"


class NoBottleneck(Ablation):
    """PETAL without the information bottleneck's loss."""

    name, title, colour, order = "no-ib", "PETAL without information bottleneck", "#7570B3", 72
    setting, value = "ib", "off"


class NoThreshold(Ablation):
    """PETAL without the learnable threshold on the core."""

    name, title, colour, order = "no-threshold", "PETAL without threshold", "#66A61E", 73
    setting, value = "threshold", "none"


class DiagonalCore(Ablation):
    """PETAL with the paper's diagonal core."""

    name, title, colour, order = "diagonal-core", "PETAL, diagonal core", "#E7298A", 74
    setting, value = "core", "diagonal"


class FullCore(Ablation):
    """PETAL with the released code's full core."""

    name, title, colour, order = "full-core", "PETAL, full core", "#E7298A", 75
    setting, value = "core", "full"


def petal_config(host: type[Host], settings: Any) -> PetalConfig:
    """The tuner's configuration for the recipe's ``settings`` on ``host``."""
    return PetalConfig(
        towers=host.towers,
        form=settings.form,
        rank=settings.rank,
        image_rank=settings.image_rank if host.has_qformer else None,  # a preset's, elsewhere
        core=settings.core,
        threshold=settings.threshold,
        threshold_per_rank=settings.threshold_per_rank and settings.threshold != "none",
        dropout=settings.adapter_dropout,
        shared_mask=settings.shared_mask,
        experts=settings.experts,
        expert_rank=settings.expert_rank,
        expert_gate=settings.expert_gate,
        expert_top_k=settings.expert_top_k if settings.experts else None,
        expert_scope=settings.expert_scope,
        expert_alpha=settings.expert_alpha,
        expert_beta=settings.expert_beta,
        query_transform=settings.query_transform,
        context=settings.context,
    )


def information_bottleneck(config: Any, settings: Any) -> InformationBottleneck:
    """:class:`petx.losses.InformationBottleneck` for a host of configuration ``config``."""
    words, own = config.text_config.vocab_size, settings.ib_vocabulary
    if own is not None and own > words:
        raise UserError(f"ib_vocabulary must be at most the language model's {words}, got {own}")
    released = settings.ib == "authors" and not config.use_decoder_only_language_model
    return InformationBottleneck(
        config.qformer_config.hidden_size,
        config.vision_config.hidden_size,
        own or words,
        estimator=settings.ib,
        eta=settings.ib_eta,
        kappa=None if settings.ib_learnable else settings.ib_weight,
        learnable_kappa=settings.ib_learnable,
        sign=settings.ib_sign,
        ignored="as_zero" if released else "skip",  # if a prompt stands before the answer it is never counted
    )


BASELINES = [Petal(), Aurora(), NoExperts(), NoGate(), NoBottleneck(), NoThreshold(), DiagonalCore(), FullCore()]
