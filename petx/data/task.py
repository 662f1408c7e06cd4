"""A task as a data set: image features and token ids of its examples out, predictions scored."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from petx import metrics
from petx.data.batches import joined
from petx.data.examples import Example, sampled_answer
from petx.data.predictions import PredictionFile


class Task(Dataset):
    """Examples of one task, asked for by index, or by (index, draw), of which ``draw`` decides which answer is sampled.

    Args:
        metric: name of a module of :mod:`petx.metrics`.
        prompt: what stands in front of every text that the model reads.
        loss: ``sample`` averages the token loss of each example, weights it by the answer's score and averages those;
            ``token`` averages over all tokens of the batch.
        predictions: the format of its prediction files.
        max_new: longest generated answer in tokens, if that is not ``max_target``.
        choices: answers whose first tokens' logits are compared, instead of generating; None to generate.
        generation: further arguments of ``generate``, such as ``length_penalty``.
    """

    retrieval = False  # whether its images and captions are ranked, and no text is generated

    def __init__(
        self,
        name: str,
        examples: list[Example],
        features: Any,
        tokenizer: Any,
        *,
        max_target: int,
        metric: str,
        max_text: int | None = None,
        prompt: str = "",
        loss: str = "sample",
        num_beams: int = 1,
        choices: Sequence[str] | None = None,
        predictions: PredictionFile | None = None,
        max_new: int | None = None,
        generation: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.examples, self.features, self.tokenizer = name, examples, features, tokenizer
        self.max_text, self.max_target, self.num_beams, self.choices = max_text, max_target, num_beams, choices
        self.prompt = prompt
        self.metric, self.loss, self.generation = metric, loss, generation or {}
        self.predictions = predictions or PredictionFile()
        self.max_new = max_new or max_target
        self._remember()

    def _remember(self) -> None:
        self.encode = functools.lru_cache(maxsize=4096)(self._encode)  # easy-VQA has 107 questions

    def __getstate__(self) -> dict[str, Any]:  # a worker that is not forked remembers texts of its own
        return {name: value for name, value in self.__dict__.items() if name != "encode"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._remember()

    def __len__(self) -> int:
        return len(self.examples)

    def drawn(self, key: Any) -> tuple[Example, str, float, str]:
        """``(example, answer, score, draw)`` of an index or (index, draw), which decides which of its answers it is."""
        index, draw = key if isinstance(key, tuple) else (key, "")
        example = self.examples[index]
        return example, *sampled_answer(example.answers, f"{self.name} {draw} {index}"), draw

    def __getitem__(self, key: Any) -> dict[str, Any]:
        return self.item_of(key, self.features)

    def __getitems__(self, keys: list[Any]) -> list[dict[str, Any]]:
        """The items of a batch; the features of all of them are read at once, if the store can do that."""
        together = getattr(self.features, "together", None)
        if together is None:
            return [self[key] for key in keys]
        features, boxes = together([image for key in keys for image in self.drawn(key)[0].images])
        rows = iter(features)
        return [self.item_of(key, lambda _: (next(rows), boxes)) for key in keys]

    def item_of(self, key: Any, look: Callable[[Any], tuple]) -> dict[str, Any]:
        """The item of ``key``; ``look`` gives features and boxes of its images, one after the other."""
        example, answer, score, _ = self.drawn(key)
        return self.visual(example.images, look) | {
            "input_ids": self.encode(self.prompt + example.text, self.max_text),
            "labels": self.encode(answer, self.max_target),
            "task": self.name,
            "weight": score,
            "loss": self.loss,
        }

    def visual(self, images: tuple, look: Callable[[Any], tuple]) -> dict[str, torch.Tensor]:
        """Features, boxes and image numbers of the visual tokens of ``images``, one after the other."""
        features, boxes = zip(*map(look, images), strict=True)
        numbers = _numbers(tuple(map(len, boxes)))
        return {"visual_features": joined(features), "boxes": joined(boxes), "image_ids": numbers}

    def _encode(self, text: str, limit: int | None = None, tokenizer: Any = None) -> torch.Tensor:
        read = self.tokenizer if tokenizer is None else tokenizer
        return torch.tensor(read(text, truncation=limit is not None, max_length=limit)["input_ids"])

    def finished(self, text: str) -> str:
        """A generated text as it is scored and written."""
        return text.strip()

    @property
    def answered(self) -> bool:
        """Whether the answers are known; those of test splits are often withheld, and then nothing is scored."""
        return any(example.answered for example in self.examples)

    def score(self, predictions: list[Any]) -> dict[str, float]:
        """``{metric: value}`` of one text, or ranking, per example, in order; the first is the task's own metric.

        Nothing if the answers are not known.
        """
        if not self.answered:
            return {}
        return metrics.find(self.metric)(predictions, self.examples)


@functools.lru_cache(maxsize=16)
def _numbers(counts: tuple[int, ...]) -> torch.Tensor:
    """Of each of an item's visual tokens, which of its images it belongs to."""
    return torch.cat([torch.full((count,), i) for i, count in enumerate(counts)])
