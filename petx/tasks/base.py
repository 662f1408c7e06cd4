"""What a task says of itself, and what a run trains and scores on."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.predictions import PredictionFile
from petx.data.stores import H5Features
from petx.errors import UserError


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """A task: how its files are read, how it is asked, and how it is scored.

    Args:
        title: a line for ``petx train METHOD --list``.
        data: the kind of data it belongs to, as ``--data`` names it.
        read: ``read(folder, split, training, tokenizer)`` gives the examples of a split below the data folder, without
            the prompt.
        store: reads its features, for hosts that read features: :class:`petx.data.stores.H5Features` or its like.
        methods: recipes that can train on it.
        prompt: what VL-PET's hosts read in front of a question.
        templates: instructions in place of the settings', for hosts that read instructions.
        language_template: what a Q-Former's language model reads in place of the first of ``templates``.
        metric: name of a module of :mod:`petx.metrics`.
        max_text, max_target: tokens of a text (prompt included) and of an answer (its end included).
        images, features: folders below the data folder in which its image files, or released feature files, lie; the
            first that is there is taken, or else ``images`` or ``features``.
        files: what it reads below the data folder, ``{path: split}``; ``<split>`` in both is the split's name, ``*`` as
            a split says that the file's entries name theirs, and nothing that the file is read beside a split's.
        only: why other methods cannot train on it.
        retrieval: whether images and captions are ranked for one another, and no text is generated; its metric then
            scores rankings, and ``predictions`` holds them.
        loss, num_beams, choices, predictions, max_new: see :class:`petx.data.task.Task`.
    """

    name: str
    title: str = ""
    data: str = "image-text"
    read: Callable[[Path, str, bool, Any], Iterable[Example]] | None = None
    store: type = H5Features
    methods: tuple[str, ...] = ("vlpet", "petal")
    prompt: str = ""
    templates: tuple[str, ...] = ()
    language_template: str | None = None
    metric: str = "exact"
    max_text: int | None = None
    max_target: int = 20
    loss: str = "sample"
    num_beams: int = 1
    choices: tuple[str, ...] | None = None
    predictions: PredictionFile = dataclasses.field(default_factory=PredictionFile)
    max_new: int | None = None
    images: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    only: str = ""
    retrieval: bool = False

    def examples(self, folder: str | Path, splits: list[str], training: bool, tokenizer: Any = None) -> list[Example]:
        """The examples in ``splits``, without a prompt; :class:`UserError` if there are none."""
        assert self.read is not None, self.name  # of a task that is read from a data folder
        examples = [one for split in splits for one in self.read(Path(folder), split, training, tokenizer)]
        if not examples:
            raise UserError(f"{self.name}: no examples in {', '.join(splits)} under {folder}")
        return examples

    def limits(self) -> dict[str, Any]:
        """Keyword arguments of :class:`petx.data.task.Task`."""
        names = ("metric", "max_text", "max_target", "loss", "num_beams", "choices", "predictions", "max_new")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass
class RunData:
    """What a run trains and scores on: lists of data sets."""

    tokenizer: Any
    train: list
    dev: list
    test: list
    pretraining: list = dataclasses.field(default_factory=list)  # tasks the small host is pretrained on
    feature_stats: tuple | None = None  # mean and standard deviation of the training images' features, by channel
    baselines: dict = dataclasses.field(default_factory=dict)  # {name: {"dev": scores, "test": scores}}


class Source:
    """What ``--data`` names."""

    kind: str  # its name
    settings: tuple[str, ...] = ()  # those that it reads, and not every kind of data does
    own_tasks: tuple[str, ...] = ()  # names of its tasks, unless they are modules of their own
    retrieval: tuple[str, ...] = ()  # those of them that rank images and captions
    pretraining: str | None = None  # what a small host is pretrained on, in words; None for the lessons of the host
    caveats = False  # whether the recipe's notes belong beside its table
    encodes_images = False  # whether :meth:`encode` makes the features it trained on of any image file

    def specs(self, settings: Any) -> dict[str, TaskSpec]:
        """``{name: task}`` of the tasks that ``settings`` can train on; of the source's own none."""
        return {}

    def check(self, settings: Any) -> None:
        """Raise :class:`UserError` if something is missing or does not fit, before any work."""
        raise NotImplementedError

    def check_host(self, settings: Any, host: Any) -> None:
        """Raise :class:`UserError` if ``host``, that of ``settings``, cannot read this data, before any work."""

    def examples(self, settings: Any, task: str, split: str) -> tuple[TaskSpec, list[Example]]:
        """The task and its examples in ``split`` (dev, test), as they are scored: without a model's tokenizer."""
        raise NotImplementedError

    def load(self, settings: Any, host: Any) -> RunData:
        """The data as ``host`` (a class of :class:`petx.hosts.Host`) reads it."""
        raise NotImplementedError

    def encode(self, image: str | Path, settings: Any) -> tuple[Any, Any]:
        """``(features [1, V, F], boxes [1, V, 4])`` of one image file."""
        raise NotImplementedError
