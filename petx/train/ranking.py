"""All images and all captions of a task ranked for one another: by similarity, the first few again by matching."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from petx import hosts
from petx.data.rankings import DEPTH, Ranking, names
from petx.hosts._retrieval import Inputs, bare, similarities


@torch.inference_mode()
def rankings(model: nn.Module, task: Any, tokenizer: Any, *, batch_size: int) -> list[Ranking]:
    """The :class:`petx.data.rankings.Ranking` of every example of ``task`` (:class:`petx.data.pairs.Pairs`).

    The ``task.rerank`` captions most similar to an image, and images to a caption, come first, in the order of
    similarity plus the log-odds of matching; then the rest, by similarity. What is equal keeps the files' order.
    """
    host: Any = hosts.bound(model, tokenizer)
    inner, training = bare(model), model.training
    model.eval()
    try:
        every = [text for example in task.examples for text in example.references]
        texts = [host.embed_texts(inner, batch) for batch, _ in _captions(host, inner, task, every, batch_size)]
        images = [host.embed_images(inner, seen) for seen in _seen(host, inner, task, batch_size)]
        similarity = torch.cat([similarities(part, torch.cat(texts)) for part in images]).cpu()
        matched = _matched(host, inner, task, every, similarity, batch_size)
    finally:
        model.train(training)
    to_text = _best(similarity, matched, task.rerank)
    to_image = iter(_best(similarity.T, matched.T, task.rerank))
    image_names, own = names(task.examples)
    text_names = [name for captions in own for name in captions]
    return [
        Ranking(
            tuple(text_names[j] for j in best),
            tuple(tuple(image_names[i] for i in next(to_image)) for _ in captions),
        )
        for best, captions in zip(to_text, own, strict=True)
    ]


def _best(similarity: Tensor, matched: Tensor, rerank: int) -> list[list[int]]:
    """The first columns of each row, best first."""
    kept = max(DEPTH, rerank)
    found = []
    for row, more in zip(similarity, matched, strict=True):
        order = row.sort(descending=True, stable=True).indices[:kept]
        first = order[:rerank].sort().values
        again = (row[first] + more[first]).sort(descending=True, stable=True).indices
        found.append(torch.cat([first[again], order[rerank:]])[:DEPTH].tolist())
    return found


def _matched(host: Any, model: Any, task: Any, every: list[str], similarity: Tensor, batch_size: int) -> Tensor:
    """Log-odds ``[images, captions]`` of matching for the candidates of either; zero for other pairs."""
    odds = torch.zeros_like(similarity)
    if not task.rerank:
        return odds
    wanted = torch.zeros_like(similarity, dtype=torch.bool)
    for pairs, found in ((similarity, wanted), (similarity.T, wanted.T)):
        for row, into in zip(pairs, found, strict=True):
            into[row.sort(descending=True, stable=True).indices[: task.rerank]] = True
    for i, seen in enumerate(_seen(host, model, task, 1)):
        columns = wanted[i].nonzero().flatten().tolist()
        texts = [every[j] for j in columns]
        parts = []
        for batch, count in _captions(host, model, task, texts, batch_size):
            image = {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in seen.items()}
            logits = host.match(model, image, batch).float()
            parts.append(logits[:, 1] - logits[:, 0])
        odds[i, columns] = torch.cat(parts).cpu()
    return odds


def _seen(host: Any, model: Any, task: Any, batch_size: int) -> Iterator[Inputs]:
    """What the host makes of every image, batch by batch."""
    for start in range(0, len(task.examples), batch_size):
        items = [task.picture(example) for example in task.examples[start : start + batch_size]]
        yield host.seen(model, _placed(host.pictures(items), model))


def _captions(host: Any, model: Any, task: Any, texts: list[str], size: int) -> Iterator[tuple[Inputs, int]]:
    """Batches of ``texts``, each with how many it has."""
    for start in range(0, len(texts), size):
        items = [task.caption(text) for text in texts[start : start + size]]
        yield _placed(host.captions(items), model), len(items)


def _placed(batch: Inputs, model: Any) -> Inputs:
    return {name: tensor.to(model.device) for name, tensor in batch.items()}
