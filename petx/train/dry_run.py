"""What a run would do, said and not done: host, data, steps, schedule, sizes, memory, and first examples as read."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from petx import hosts
from petx.baselines._sizes import counts
from petx.data.batches import RoundRobinBatches
from petx.errors import UserError
from petx.train import rehearsal, stages
from petx.train.trainer import warmup_steps

LONGEST = 400  # letters of a text that is shown


def lines(run: Any) -> Iterator[str]:
    """What ``run``, prepared and with its data loaded, would do; raises what it would raise before training, but for
    an output folder that it would not write to, which is said."""
    settings, data = run.settings, run.data
    host = f"{run.host.words}, {settings.host}" if settings.host else f"a small {run.host.words}, pretrained here"
    yield f"Nothing is trained, and nothing is written to {run.out}."
    try:
        stages.check_output(run)
    except UserError as error:
        yield f"refused   {error}"
    yield f"host      {host}"
    sizes = stages.batch_sizes(run)
    scored = {dev.name: (dev, test) for dev, test in zip(data.dev, data.test, strict=True)}
    for i, task in enumerate(data.train):
        epoch = RoundRobinBatches.epoch_steps([len(task)], sizes[i : i + 1], settings.drop_last)
        known = f", {_scored(*scored[task.name])}" if task.name in scored else ""
        batches = f"batches of {sizes[i]}, {epoch:,} an epoch"
        metric = f"; metric {scored.pop(task.name)[0].metric}" if known else ", not scored by itself"
        yield f"task      {task.name}: {len(task):,} examples to train on{known}; {batches}{metric}"
    for name, (dev, test) in scored.items():
        yield f"task      {name}: scored alone, {_scored(dev, test)}; metric {dev.metric}"
    steps = stages.steps(run, sizes)
    whole = RoundRobinBatches.epoch_steps(list(map(len, data.train)), sizes, settings.drop_last)
    an_epoch = math.ceil(whole / settings.accumulated)
    schedule = getattr(settings, "schedule", "linear")
    warm = f"{warmup_steps(settings, steps):,} to warm up, then {schedule} decay"
    every = f"a score every {settings.eval_every:,}, a checkpoint every {settings.save_every:,}"
    yield f"steps     {steps:,}, {steps / an_epoch:.2f} epochs of {an_epoch:,}; {warm}; {every}"
    yield from _arms(run)
    for split, parts in (("train", data.train), ("test", data.test)):
        for task in parts:
            yield from _example(run, task, split)


def _scored(dev: Any, test: Any) -> str:
    """How many examples of a task are scored, or only predicted."""
    bare = [name for name, part in (("dev", dev), ("test", test)) if not part.answered]
    unknown = f"; {' and '.join(bare)} predicted, not scored" if bare else ""
    return f"{len(dev):,} dev, {len(test):,} test{unknown}"


def _arms(run: Any) -> Iterator[str]:
    settings = run.settings
    known = False
    for arm, model in rehearsal.sketches(run):
        known = True
        size = counts(run.host, model)
        trained, total = size["trainable"], size["total"]
        rate = f", learning rate {run.baseline(arm).learning_rate(settings):g}" if trained else ""
        memory = rehearsal.least_bytes(settings, model) / 2**20
        seeds = settings.seeds if trained else 1
        share = f"{trained:,} of {total:,} parameters trained ({100 * trained / total:.2f} %)"
        needs = f"at least {memory:,.1f} MiB for weights, gradients and AdamW (modelled, activations beside)"
        yield f"arm       {arm}: {share}{rate}, {seeds} seed{'s' if seeds > 1 else ''}; {needs}"
    if not known:
        yield "arms      " + ", ".join(settings.all_arms) + "; their sizes are known once the host is there"


def _example(run: Any, task: Any, split: str) -> Iterator[str]:
    """The first example of ``task``, its batch of one decoded again."""
    example, tokenizer = task.examples[0], run.data.tokenizer
    sketch = rehearsal.host_sketch(run)
    if sketch is None:
        yield f"{task.name}, {split}: {_short(example.text)!r}"
        return
    host: Any = hosts.bound(sketch, tokenizer)
    item = task[0]
    if task.retrieval:
        yield from _pair(host, task, split, tokenizer)
        return
    batch = host.collate([item]) if split == "train" else host.prompts([item])
    shapes = {name: list(value.shape) for name, value in batch.items() if torch.is_tensor(value)}
    yield f"first example of {task.name}, {split}: id {example.id}, image {', '.join(map(str, example.images))}"
    yield f"  read    {_short(tokenizer.decode(batch['input_ids'][0]))}"
    if split == "train":
        yield f"  answer  {_short(tokenizer.decode(item['labels']))}"
    elif example.answered:
        given = Counter(example.references or (example.answers[0][0],))
        shown = [f"{text} (x {count})" if count > 1 else text for text, count in given.items()]
        yield f"  known   {_short(', '.join(shown))}"
    yield f"  batch   {', '.join(f'{name} {shape}' for name, shape in shapes.items())}"


def _pair(host: Any, task: Any, split: str, tokenizer: Any) -> Iterator[str]:
    """The first image of ``task`` with what is read of its captions."""
    example, batch = task.examples[0], host.pairs([task[0]])
    texts = [task.drawn(0)[1]] if split == "train" else example.references
    reads = getattr(tokenizer, "qformer", None) or tokenizer
    shapes = {name: list(value.shape) for name, value in batch.items() if torch.is_tensor(value) and name != "same"}
    yield f"first pair of {task.name}, {split}: id {example.id}, image {', '.join(map(str, example.images))}"
    for text in texts:
        yield f"  caption {_short(reads.decode(task.caption(text)['input_ids']))}"
    if split != "train":
        counted = sum(len(one.references) for one in task.examples)
        again = f"; the first {task.rerank} again by matching" if task.rerank else ""
        yield f"  ranked  {len(task.examples):,} images and {counted:,} captions{again}"
    yield f"  batch   {', '.join(f'{name} {shape}' for name, shape in shapes.items())}"


def _short(text: str) -> str:
    """``text`` on one line, with runs of one word, such as the image's places, counted and long middles left out."""
    words: list[list[Any]] = []
    for word in text.replace("><", "> <").split():
        if words and words[-1][0] == word:
            words[-1][1] += 1
        else:
            words.append([word, 1])
    plain = " ".join(f"{word} (x {count})" if count > 3 else " ".join([word] * count) for word, count in words)
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST // 2]} ... {plain[-LONGEST // 2 :]}"
