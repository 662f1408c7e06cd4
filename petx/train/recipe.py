"""What a recipe gives to the machinery that all recipes share: settings, data, trainer, and the words of its report."""

from typing import Any, ClassVar

import torch
from accelerate import PartialState
from torch import nn

from petx import hosts, tasks
from petx.baselines import Baseline
from petx.baselines import of_method as baselines_of
from petx.errors import UserError
from petx.hosts import Host
from petx.train.settings import Common
from petx.train.trainer import PetTrainer


class Recipe:
    """A recipe, ``petx.train.NAME.RECIPE``. Methods that raise here are the recipe's to write.

    Class attributes: ``name`` (of the method, and of the baseline that it is), ``settings`` (dataclass,
    :class:`petx.train.settings.Common`), ``small_host`` (the host that is pretrained here), ``columns`` (heading and
    key of the record, between "share" and the scores).
    """

    name: ClassVar[str]
    settings: ClassVar[type[Common]]
    small_host: ClassVar[str]
    columns: ClassVar[tuple[tuple[str, str], ...]] = ()

    @property
    def baselines(self) -> dict[str, Baseline]:
        """``{name: baseline}`` in the order of the table."""
        return baselines_of(self.name)

    def prepared_host(self, settings: Common) -> type[Host]:
        """The host of ``settings``; :class:`UserError` if something the run will read is missing, before any work."""
        tasks.source(settings.data).check(settings)
        host = hosts.find(self.small_host) if settings.host is None else self.given_host(settings)
        host.check(settings)
        tasks.source(settings.data).check_host(settings, host)
        _check_retrieval(settings, host)
        for arm in settings.all_arms:
            if self.baselines[arm].random_host and settings.host is not None:
                raise UserError(f"arm {arm} is for a small host, which is pretrained here, got host={settings.host!r}")
            needed = self.baselines[arm].misfit(host)
            if needed is not None:
                raise UserError(f"arm {arm} needs {needed}, and {host.words} has none")
        return host

    def given_host(self, settings: Common) -> type[Host]:
        """The kind of ``settings.host``; its tokenizers are there."""
        assert settings.host is not None
        host = hosts.of_checkpoint(settings.host, self.name)
        host.pretrained_tokenizers(settings)
        return host

    def trainer(
        self,
        model: nn.Module,
        args: Any,
        tokenizer: Any,
        tasks: list,
        batch_sizes: list[int],
        settings: Common,
        dev_tasks: list | tuple = (),
    ) -> PetTrainer:
        """The trainer of this recipe."""
        raise NotImplementedError

    def training_options(self, settings: Common) -> dict[str, Any]:
        """Further fields of ``Seq2SeqTrainingArguments``: mixed precision, and what ``settings.trainer`` names."""
        options: dict[str, Any] = {settings.amp: True} if settings.amp and torch.cuda.is_available() else {}
        return options | settings.trainer

    def notes(self, settings: Common) -> str:
        """What belongs beside easy-VQA's table, with fields ``{blind}`` (a score) and ``{seeds}`` (a sentence)."""
        raise NotImplementedError


def _check_retrieval(settings: Common, host: type[Host]) -> None:
    """Raise :class:`UserError` if a task of ``settings`` ranks images and captions, and that cannot be learnt so."""
    ranked = tasks.retrieval(settings)
    if not ranked and (unread := settings.differing(settings.of_retrieval)):
        raise UserError(f"{', '.join(unread)}: nothing reads this without a task of retrieval")
    if tasks.only_ranks(settings) and (unread := settings.differing(settings.of_texts)):
        raise UserError(f"{', '.join(unread)}: this is of texts that are generated, and {', '.join(ranked)} ranks")
    for name in ranked:
        if not host.retrieves:
            raise UserError(f"task {name} ranks images and captions for one another, and {host.words} cannot")
        if PartialState().num_processes > 1:
            raise UserError(f"task {name} compares all pairs of a batch, which one process has: run a single one")
        if settings.batch_sizes.get(name, settings.batch_size) < 2:
            raise UserError(f"task {name} compares the pairs of a batch: its batch size must be at least 2")
        if getattr(settings, "ib", "off") != "off":
            raise UserError(f"task {name} has no answers that ib={vars(settings)['ib']} could bound: set ib=off")
