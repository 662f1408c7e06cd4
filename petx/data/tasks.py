"""Tasks as data sets: examples with image features in, batches for an encoder-decoder out, predictions scored."""

import dataclasses
import functools
import random

import torch
from torch.utils.data import Dataset, Sampler

from petx import metrics

IGNORED = -100  # label of a position without loss


@dataclasses.dataclass(frozen=True)
class Example:
    text: str  # what the encoder reads, prompt included
    images: tuple  # keys of the feature store, in order
    answers: tuple  # (answer, score) pairs; training samples one in proportion to its score
    references: tuple = ()  # annotators' answers or reference captions, where the metric wants them
    kind: str = ""  # questions of one kind are also scored apart


class ArrayFeatures:
    """Features of all images in one tensor ``[images, V, F]``, with the boxes ``[V, 4]`` they share."""

    def __init__(self, features, keys, boxes):
        self.features, self.boxes = features, boxes
        self.rows = {key: row for row, key in enumerate(keys)}

    def __call__(self, key):
        return self.features[self.rows[key]], self.boxes


class Task(Dataset):
    """Examples of one task, asked for by index, or by (index, draw) where ``draw`` decides which answer is sampled.

    Args:
        metric: ``exact`` (share of exact matches), ``vqa`` (soft accuracy over ``references``), ``matches`` (A-OKVQA's
            count of them) or ``caption`` (CIDEr-D, BLEU-4, ROUGE-L against ``references``).
        loss: ``sample`` averages the token loss of each example, weights it by the answer's score and averages those;
            ``token`` averages over all tokens of the batch.
        choices: answers whose first tokens' logits are compared, instead of generating; None to generate.
        generation: further arguments of ``generate``, such as ``length_penalty``.
    """

    def __init__(
        self,
        name,
        examples,
        features,
        tokenizer,
        *,
        max_target,
        metric,
        max_text=None,
        loss="sample",
        num_beams=1,
        choices=None,
        generation=None,
    ):
        self.name, self.examples, self.features, self.tokenizer = name, examples, features, tokenizer
        self.max_text, self.max_target, self.num_beams, self.choices = max_text, max_target, num_beams, choices
        self.metric, self.loss, self.generation = metric, loss, generation or {}
        self.encode = functools.lru_cache(maxsize=4096)(self._encode)  # easy-VQA has 107 questions

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, key):
        index, draw = key if isinstance(key, tuple) else (key, "")
        example = self.examples[index]
        answer, score = sampled_answer(example.answers, f"{self.name} {draw} {index}")
        features, boxes = zip(*map(self.features, example.images), strict=True)
        return {
            "input_ids": self.encode(example.text, self.max_text),
            "labels": self.encode(answer, self.max_target),
            "visual_features": features[0] if len(features) == 1 else torch.cat(features),
            "boxes": boxes[0] if len(boxes) == 1 else torch.cat(boxes),
            "image_ids": torch.cat([torch.full((len(box),), i) for i, box in enumerate(boxes)]),
            "weight": score,
            "loss": self.loss,
        }

    def _encode(self, text, limit=None):
        return torch.tensor(self.tokenizer(text, truncation=limit is not None, max_length=limit)["input_ids"])

    def score(self, predictions):
        """``{metric: value}`` of one generated text per example, in order; the first is the task's own metric."""
        references = [example.references for example in self.examples]
        if self.metric == "caption":
            return {
                "cider": 100 * metrics.cider_d(predictions, references),
                "bleu4": 100 * metrics.bleu(predictions, references)[3],
                "rouge_l": 100 * metrics.rouge_l(predictions, references),
            }
        if self.metric == "vqa":
            return {"accuracy": 100 * metrics.vqa_accuracy(predictions, references)}
        if self.metric == "matches":
            return {"accuracy": 100 * metrics.match_accuracy(predictions, references)}
        answers = [example.answers[0][0] for example in self.examples]
        scores = {"accuracy": 100 * metrics.exact_match(predictions, answers)}
        for kind in sorted({example.kind for example in self.examples} - {""}):
            chosen = [i for i, example in enumerate(self.examples) if example.kind == kind]
            scores[kind] = 100 * metrics.exact_match([predictions[i] for i in chosen], [answers[i] for i in chosen])
        return scores


def sampled_answer(answers, seed):
    if len(answers) == 1:
        return answers[0]
    total = sum(score for _, score in answers)
    if total <= 0:  # no answer was agreed on: the example carries no loss
        return "", 0.0
    return random.Random(seed).choices(answers, [score for _, score in answers])[0]


class TaskMixture(Dataset):
    """Several tasks behind one index: an item is asked for by (task, index, draw)."""

    def __init__(self, tasks):
        self.tasks = tasks

    def __len__(self):
        return sum(map(len, self.tasks))

    def __getitem__(self, key):
        task, index, draw = key
        return self.tasks[task][index, draw]


class RoundRobinBatches(Sampler):
    """``steps`` batches, each of one task: an epoch is all batches of all tasks in an order drawn anew (seed, epoch).

    Yields keys of :class:`TaskMixture`. Under several processes each gets its share of every batch; a batch that does
    not divide evenly is filled up from its own beginning. The order depends on nothing but the arguments, so training
    can go on in the middle of it.
    """

    def __init__(self, lengths, batch_sizes, *, steps, seed, rank=0, processes=1):
        self.lengths, self.batch_sizes, self.steps, self.seed = lengths, batch_sizes, steps, seed
        self.rank, self.processes = rank, processes

    @staticmethod
    def epoch_steps(lengths, batch_sizes):
        return sum(-(-length // size) for length, size in zip(lengths, batch_sizes, strict=True))

    def __len__(self):
        return self.steps

    def __iter__(self):
        step, epoch = 0, 0
        while step < self.steps:
            for batch in self._epoch(epoch)[: self.steps - step]:
                missing = -len(batch) % self.processes
                yield (batch + (batch * missing)[:missing])[self.rank :: self.processes]
                step += 1
            epoch += 1

    def _epoch(self, epoch):
        draw = f"{self.seed} {epoch}"
        order_of = random.Random(draw)
        batches = []
        for task, (length, size) in enumerate(zip(self.lengths, self.batch_sizes, strict=True)):
            order = list(range(length))
            order_of.shuffle(order)
            keys = [(task, index, draw) for index in order]
            batches += [keys[start : start + size] for start in range(0, length, size)]
        order_of.shuffle(batches)
        return batches
