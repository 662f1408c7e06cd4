"""What the training machinery asks of a host: the frozen model, its tokenizers, its batches and its parts."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from petx.data.batches import IGNORED
from petx.data.conversations import Conversations
from petx.data.examples import Example
from petx.data.task import Task


class Host:
    """A kind of frozen model. Its class methods are about the model; an instance, bound to one model's configuration
    and tokenizer, makes batches of a task's items, computes token losses and generates.

    Class attributes:
        methods: recipes that tune it.
        model_types: transformers' ``model_type`` of its checkpoints.
        architectures: if it names any, the host is for checkpoints of these classes, and others of ``model_types`` are
            another host's.
        words, order: what messages call it, and where it stands among the others.
        in_place: a pretrained checkpoint is used where it lies; otherwise it is copied into the run, with new tokens.
        projector: name of the module between image and language, counted apart; None if it is not.
        towers: parts of the model that PETAL adapts; None for the tuner's default.
        has_qformer: whether there is a Q-Former, which some baselines need.
        has_biases: whether what full tuning trains has biases beside those of new modules.
        has_new: whether :meth:`always` gives modules, which are new to the host and trained in every tuned row.
        takes_prompt: whether a module assigned to the model's ``soft_prompt`` puts its tokens into the encoder's input.
        tells_task: whether a batch has ``task``, and the model takes it for the module in its ``task_adapters``.
        full_words: what follows "full tuning" in a table.
        retrieves: whether it embeds images and captions for retrieval.
        inputs: entries of a batch that generating needs.
        lessons: what its small version is pretrained on, of easy-VQA's, unless settings say otherwise.
        small_settings: settings that its small version reads, and not every host does.
        given_settings: settings that it reads as a given checkpoint, and not every host does.
    """

    methods: ClassVar[tuple[str, ...]]
    model_types: ClassVar[tuple[str, ...]] = ()
    architectures: ClassVar[tuple[str, ...]] = ()
    words: ClassVar[str]
    order: ClassVar[int] = 50
    in_place: ClassVar[bool] = True
    projector: ClassVar[str | None] = None
    towers: ClassVar[list[str] | None] = None
    has_qformer: ClassVar[bool] = False
    has_biases: ClassVar[bool] = True
    has_new: ClassVar[bool] = False
    takes_prompt: ClassVar[bool] = False
    tells_task: ClassVar[bool] = False
    full_words: ClassVar[str] = ""
    retrieves: ClassVar[bool] = False
    inputs: ClassVar[tuple[str, ...]]
    lessons: ClassVar[tuple[str, ...]] = ()
    lora_images: ClassVar[str | None] = None  # pattern of those modules of :meth:`lora` that read image features
    small_settings: ClassVar[tuple[str, ...]] = ()
    given_settings: ClassVar[tuple[str, ...]] = ()

    pad: int  # token that fills up texts
    start: int | None  # first token of a decoder

    def __init__(self, config: Any, tokenizer: Any) -> None:
        raise NotImplementedError

    # ---- the model ----

    @classmethod
    def takes(cls, config: Any) -> bool:
        """Whether checkpoints of transformers' configuration ``config`` are its; of several hosts the first's."""
        return config.model_type in cls.model_types

    @classmethod
    def reads_by(cls, tokenizer: object) -> bool:
        """Whether ``tokenizer`` is of the kind that :meth:`tokenizers` gives."""
        return not isinstance(tokenizer, Conversations)

    @classmethod
    def vlpet_preset(cls, config: Any) -> str:
        """``preset`` of :class:`petx.tuners.VLPetConfig` for a model of ``config``."""
        return "auto"

    @classmethod
    def check(cls, settings: Any) -> None:
        """Raise :class:`petx.errors.UserError` if ``settings`` ask for something this host cannot do."""

    @classmethod
    def reads(cls, settings: Any) -> set[str]:
        """Of the settings that not every host reads, those that it does under ``settings``."""
        return set(cls.small_settings if settings.host is None else cls.given_settings)

    @classmethod
    def tokenizers(cls, folder: str | Path) -> Any:
        """Tokenizer of the host in ``folder``, as a run saved it or as it was published."""
        raise NotImplementedError

    @classmethod
    def pretrained_tokenizers(cls, settings: Any) -> Any:
        """Tokenizer of ``settings.host`` with the tokens that the host adds."""
        return cls.tokenizers(settings.host)

    @classmethod
    def load(cls, folder: str | Path, settings: Any) -> nn.Module:
        """The model in ``folder``, in evaluation mode."""
        raise NotImplementedError

    @classmethod
    def pretrained(cls, settings: Any, tokenizer: Any) -> nn.Module:
        """``settings.host`` as a run saves it; only asked for unless ``in_place``."""
        raise NotImplementedError

    @classmethod
    def small(cls, settings: Any, data: Any) -> nn.Module:
        """A small model of random weights for :class:`petx.train.data.RunData`, to be pretrained."""
        raise NotImplementedError

    @classmethod
    def lessons_of(cls, settings: Any) -> tuple[str, ...]:
        """The lessons that the small version of ``settings`` is pretrained on."""
        return tuple(getattr(settings, "lessons", ())) or cls.lessons

    @classmethod
    def sketch(cls, settings: Any, data: Any) -> nn.Module | None:
        """The host of a run as ``torch.device("meta")`` makes it, to see what can be built; None if that is unknown."""
        return cls.small(settings, data) if settings.host is None else None

    @classmethod
    def prepare_pretraining(cls, model: nn.Module, settings: Any) -> None:
        """Freeze what pretraining leaves as it is; by default nothing."""

    @classmethod
    def skeleton(cls, model: Any) -> nn.Module:
        """A model like ``model`` without memory for its parameters, to count on."""
        with torch.device("meta"):
            return type(model)(model.config)

    # ---- its data ----

    @classmethod
    def small_tokenizer(cls, texts: list[str], settings: Any, visual_tokens: int) -> Any:
        """Tokenizer of the small host over the words of ``texts`` and of what the host itself says."""
        raise NotImplementedError

    @classmethod
    def adapted(cls, spec: Any, settings: Any) -> Any:
        """``spec`` (:class:`petx.tasks.TaskSpec`) as ``settings`` change it; by default as it is."""
        return spec

    @classmethod
    def store(cls, spec: Any, settings: Any, tokenizer: Any, split: str) -> Any:
        """What reads the features or pixels of ``spec`` below ``settings.data_dir``."""
        raise NotImplementedError

    @classmethod
    def dataset(cls, spec: Any, examples: list[Example], store: Any, tokenizer: Any, settings: Any, split: str) -> Task:
        """``examples`` of ``spec`` as this host reads them; ``split``: train, dev, test or pretraining."""
        raise NotImplementedError

    @classmethod
    def question_item(cls, source: Any, settings: Any, tokenizer: Any, image: str, question: str) -> dict[str, Any]:
        """An item of one question on an image file, for ``petx predict``; ``source``: :class:`petx.tasks.Source`.

        Beside what batches are made of it has ``max_target``, and ``unknown``: words the vocabulary lacks.
        """
        raise NotImplementedError

    # ---- its parts ----

    @classmethod
    def always(cls, model: nn.Module) -> list[nn.Module]:
        """Modules that are trained in every tuned row, because they are new; by default none."""
        return []

    @classmethod
    def full(cls, model: nn.Module) -> Iterable[nn.Parameter]:
        """What full tuning trains."""
        return model.parameters()

    @classmethod
    def vision_norm(cls, model: nn.Module) -> nn.Module | None:
        """The norm of the image features, which PETAL's full tuning may train, too; None without one."""
        return None

    @classmethod
    def everything(cls, model: nn.Module) -> Iterable[nn.Parameter]:
        """What training from scratch trains."""
        return cls.full(model)

    @classmethod
    def lora(cls, rank: int, settings: Any) -> dict[str, Any]:
        """Arguments of PEFT's ``LoraConfig``: the paper's baseline on this host, at a scale of 1."""
        raise NotImplementedError

    @classmethod
    def lora_sizes(cls, model: nn.Module, settings: Any) -> Callable[[int], int]:
        """Parameters of :meth:`lora` by rank, from the shapes of its target modules."""
        return lora_sizes(model, cls.lora(1, settings)["target_modules"])

    # ---- bound to a configuration and a tokenizer ----

    def batch(self, items: list[dict]) -> dict[str, Any]:
        """A batch of any task's items to train on: :meth:`collate`, unless the host knows other items."""
        return self.collate(items)

    def collate(self, items: list[dict]) -> dict[str, Any]:
        """Items of a task, padded to one batch: the model's arguments, ``labels``, ``loss_weight``, ``loss_over``."""
        raise NotImplementedError

    def prompts(self, items: list[dict]) -> dict[str, torch.Tensor]:
        """The batch without its answers: arguments of the model's ``generate``."""
        batch = self.collate(items)
        return {name: batch[name] for name in self.inputs}

    def token_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy ``[B, M]`` of each label, zero if it does not count."""
        losses = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return losses.view_as(labels)

    def generate(self, model: Any, inputs: dict, **options: Any) -> torch.Tensor:
        """The generated tokens ``[B, M]``, without the prompt or the decoder's first token."""
        return model.generate(**inputs, **options)[:, 1:]

    def choose(self, model: Any, inputs: dict, choices: tuple[str, ...], tokenizer: Any) -> list[str]:
        """Of ``choices``, for each sample, the one with the largest logit where their tokens first differ."""
        return [choices[i] for i in self.choice_logits(model, inputs, choices, tokenizer).argmax(-1).tolist()]

    def choice_logits(self, model: Any, inputs: dict, choices: tuple[str, ...], tokenizer: Any) -> torch.Tensor:
        """Logits ``[B, choices]`` of the tokens in which ``choices`` first differ, where the decoder comes to them."""
        encoded = [tokenizer(choice)["input_ids"] for choice in choices]
        place = next(i for i, tokens in enumerate(zip(*encoded, strict=False)) if len(set(tokens)) > 1)
        begun = torch.tensor([[self.start, *encoded[0][:place]]], device=model.device)  # BART begins them all with <s>
        prompt = begun.expand(len(inputs["input_ids"]), -1)
        return model(**inputs, decoder_input_ids=prompt).logits[:, -1, [tokens[place] for tokens in encoded]]


def lora_sizes(model: nn.Module, pattern: str) -> Callable[[int], int]:
    """Parameters of LoRA by rank on those linears of ``model`` whose whole names match ``pattern``."""
    linears: list[Any] = [module for name, module in model.named_modules() if re.fullmatch(pattern, name)]
    return lambda rank: sum(rank * (linear.in_features + linear.out_features) for linear in linears)
