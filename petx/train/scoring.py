"""Answers of a model to the examples of a task, and their scores; the work is shared between processes."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, Subset

from petx import hosts
from petx.train import ranking


@torch.inference_mode()
def answers(model: nn.Module, task: Any, tokenizer: Any, *, batch_size: int, num_beams: int | None = None) -> list[Any]:
    """One text per example of ``task``, in order: generated (one beam: greedily), or the best of ``task.choices``; of
    retrieval a ranking."""
    if task.retrieval:
        return ranking.rankings(model, task, tokenizer, batch_size=batch_size)
    state = PartialState()
    own = range(state.process_index, len(task), state.num_processes)
    host = hosts.bound(model, tokenizer)
    options = dict(num_beams=task.num_beams, max_new_tokens=task.max_new) | task.generation
    options |= {"num_beams": num_beams} if num_beams else {}
    training = model.training
    model.eval()
    texts, device = [], cast(Any, model).device
    for batch in DataLoader(Subset(task, own), batch_size=batch_size, collate_fn=host.prompts):
        inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
        if task.choices:
            texts += host.choose(model, inputs, task.choices, tokenizer)
        else:
            tokens = host.generate(model, inputs, **options)
            texts += map(task.finished, tokenizer.batch_decode(tokens, skip_special_tokens=True))
    model.train(training)
    if state.num_processes == 1:
        return texts
    pairs = gather_object(list(zip(own, texts, strict=True)))
    return [text for _, text in sorted(pairs)]


def evaluate(
    model: nn.Module, tasks: Iterable[Any], tokenizer: Any, *, batch_size: int, num_beams: int | None = None
) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """``(scores, texts)``: scores as :func:`joined`, and by the task's name the text of each of its examples."""
    tasks = list(tasks)
    texts = {task.name: answers(model, task, tokenizer, batch_size=batch_size, num_beams=num_beams) for task in tasks}
    return joined({task.name: task.score(texts[task.name]) for task in tasks}), texts


def joined(scored: dict[str, dict[str, float]]) -> dict[str, float]:
    """``{metric: value}``, the main one first: of one task its metrics, of several ``"task metric"`` and their average.

    Tasks without a score, whose answers are not known, do not count; of none there is nothing.
    """
    if len(scored) == 1:
        return next(iter(scored.values()))
    firsts = [next(iter(values.values())) for values in scored.values() if values]
    parts = {f"{name} {metric}": value for name, values in scored.items() for metric, value in values.items()}
    return {"average": sum(firsts) / len(firsts), **parts} if firsts else {}
