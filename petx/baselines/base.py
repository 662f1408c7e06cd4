"""What a run asks of a baseline: its words, its learning rate, and the model it makes of a host."""

from typing import Any, ClassVar

from torch import nn

from petx.hosts import Host


class Baseline:
    """A way to tune a host. The first line of its docstring is shown by ``petx train METHOD --list``.

    Class attributes:
        name: on the command line, and its folder in a run.
        title: in tables; fields of the settings and of the record may stand in it, ``{lora_rank}`` for one.
        colour: of its curves, one of Okabe and Ito's where it is shown by default.
        methods: the recipes that offer it.
        order: where it stands in a table.
        lr: the setting that is its peak learning rate.
        options: settings it brings along: ``{name: (type, petx.options.option(...))}``; several may bring the same.
        own: settings of its recipe that, beside ``lr`` and ``options``, are of no use without it.
        group: a name that stands for all of one kind, such as ``ablations``.
        needs_small_host: whether it is for the small host of easy-VQA alone.
        random_host: whether it gets a small host of its own, of random weights.
        needs_qformer: whether the host must have one.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    colour: ClassVar[str] = "#999999"
    methods: ClassVar[tuple[str, ...]] = ("vlpet", "petal")
    order: ClassVar[int] = 55
    lr: ClassVar[str] = "lr"
    options: ClassVar[dict[str, tuple[Any, Any]]] = {}
    own: ClassVar[tuple[str, ...]] = ()
    group: ClassVar[str | None] = None
    random_host: ClassVar[bool] = False
    needs_qformer: ClassVar[bool] = False

    def sized(self, host: type[Host], model: nn.Module, settings: Any) -> nn.Module:
        """What other baselines are made as large as; for the methods themselves."""
        raise NotImplementedError

    def applies(self, settings: Any) -> bool:
        """Whether ``group`` stands for it, too, under ``settings``."""
        return True

    def check(self, settings: Any) -> None:
        """Raise :class:`petx.errors.UserError` if it makes no sense under ``settings``."""

    def owns(self) -> set[str]:
        """The settings that are of no use without it, or another that owns them, too."""
        return {self.lr, *self.options, *self.own}

    def reads(self, settings: Any) -> set[str]:
        """Of the settings that baselines own, those that it reads under ``settings``."""
        return self.owns()

    def unread_on(self, host: type[Host], settings: Any) -> set[str]:
        """Of what it reads, what has no effect on ``host``, that of ``settings``."""
        return set()

    def misfit(self, host: type[Host]) -> str | None:
        """What it needs of a host and ``host`` does not have, in words; None if it fits."""
        return "a Q-Former" if self.needs_qformer and not host.has_qformer else None

    def build(self, host: type[Host], model: nn.Module, settings: Any) -> nn.Module:
        """``model``, a freshly loaded ``host``, made into this: its trainable parameters have ``requires_grad``."""
        raise NotImplementedError

    def counts(self, model: nn.Module) -> dict[str, int]:
        """What its record says of the built ``model`` beside the counts of all."""
        return {}

    def titled(self, host: type[Host], settings: Any, record: dict[str, Any]) -> str:
        """Its title for one record."""
        return self.title.format(**vars(settings) | record, full_words=host.full_words)

    def learning_rate(self, settings: Any) -> float:
        """Its peak learning rate."""
        return getattr(settings, self.lr)
