"""Captions against references: CIDEr-D, BLEU and ROUGE-L as the COCO evaluation computes them on the same words."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from petx._checks import check_positive, check_size, refuse, refuse_type
from petx.data.examples import Example
from petx.metrics._arguments import check_as_many, check_text_lists, check_texts
from petx.metrics._mean import mean
from petx.metrics._ptb import ptb_words

REFERENCES = True
__all__ = ["bleu", "caption_words", "cider_d", "rouge_l", "score"]

Ngram = tuple[str, ...]


def caption_words(text: str) -> list[str]:
    """Words of a caption, lower case, without punctuation, as the COCO evaluation cuts them: those of the Penn Treebank
    ("is n't", "t-shirt"), brackets as "-lrb-" and "-rrb-"."""
    return ptb_words(text)


def bleu(captions: list[str], references: Sequence[Iterable[str]], order: int = 4) -> list[float]:
    """Corpus BLEU-1 to BLEU-``order`` (Papineni et al., 2002), the closest reference's length for brevity.

    ``captions``: list of texts; ``references``: for each, a list of texts. A precision of zero counts as 1e-15 over its
    n-grams, as in the COCO evaluation, so a corpus without one matching 4-gram still has a score.
    Values lie between 0 and 1. Raises ValueError naming the argument, what came and what was wanted.
    """
    _check("bleu", captions, references)
    check_size("bleu", order=order)
    matched, total, length, reference_length = [0] * order, [0] * order, 0, 0
    for caption, texts in zip(captions, references, strict=True):
        words, others = caption_words(caption), [caption_words(text) for text in texts]
        length += len(words)
        reference_length += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        for n in range(order):
            grams = _ngrams(words, n + 1)
            allowed: Counter[Ngram] = Counter()
            for other in others:
                allowed |= _ngrams(other, n + 1)
            total[n] += sum(grams.values())
            matched[n] += sum((grams & allowed).values())
    brevity = 1.0 if length >= reference_length else math.exp(1 - reference_length / max(length, 1e-9))
    scores, product = [], 1.0
    for n in range(order):
        product *= (matched[n] + 1e-15) / (total[n] + 1e-9)
        scores.append(brevity * product ** (1 / (n + 1)))
    return scores


def rouge_l(captions: list[str], references: Sequence[Iterable[str]], beta: float = 1.2) -> float:
    """Mean ROUGE-L (Lin, 2004): F-measure of the longest common subsequence, with the references' best precision
    and best recall; between 0 and 1. Raises ValueError naming the argument, what came and what was wanted.
    """
    _check("rouge_l", captions, references)
    check_positive("rouge_l", beta=beta)
    scores = []
    for caption, texts in zip(captions, references, strict=True):
        words, precision, recall = caption_words(caption), 0.0, 0.0
        for other in map(caption_words, texts):
            common = _common_subsequence(words, other)
            precision = max(precision, common / max(len(words), 1))
            recall = max(recall, common / max(len(other), 1))
        weighted = recall + beta**2 * precision
        scores.append((1 + beta**2) * precision * recall / weighted if weighted else 0.0)
    return mean(scores)


def cider_d(
    captions: list[str],
    references: Sequence[Iterable[str]],
    order: int = 4,
    sigma: float = 6.0,
    words: Callable[[str], list[str]] = caption_words,
) -> float:
    """Mean CIDEr-D (Vedantam et al., 2015), document frequencies from ``references``; 10 is a perfect match.

    ``words`` cuts a text; the default is :func:`caption_words`.

    The mean over n-gram orders and references of the cosine of clipped tf-idf vectors, times a Gaussian penalty on the
    difference in length, times 10.
    """
    _check("cider_d", captions, references)
    check_size("cider_d", order=order)
    check_positive("cider_d", sigma=sigma)
    if not 0 < sigma * sigma < math.inf:
        refuse("cider_d", "sigma", "a number whose square is positive and finite", sigma)
    if not callable(words):
        refuse_type("cider_d", "words", "a function of a text", words)
    counted = [[_all_ngrams(words(text), order) for text in texts] for texts in references]
    frequency = Counter(gram for texts in counted for gram in set().union(*texts))
    documents = math.log(max(len(references), 1))

    def vectors(counts: Counter[Ngram]) -> tuple[list[dict[Ngram, float]], list[float], int]:
        weights: list[dict[Ngram, float]] = [defaultdict(float) for _ in range(order)]
        for gram, count in counts.items():
            weights[len(gram) - 1][gram] = count * (documents - math.log(max(frequency[gram], 1)))
        norms = [math.sqrt(sum(value**2 for value in weight.values())) for weight in weights]
        return weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2)

    scores = []
    for caption, texts in zip(captions, counted, strict=True):
        hypothesis, hypothesis_norms, hypothesis_length = vectors(_all_ngrams(words(caption), order))
        score = 0.0
        for reference, norms, length in map(vectors, texts):
            penalty = math.exp(-((hypothesis_length - length) ** 2) / (2 * sigma**2))
            for n in range(order):
                if hypothesis_norms[n] and norms[n]:
                    other = reference[n]
                    clipped = sum(min(value, other[gram]) * other[gram] for gram, value in hypothesis[n].items())
                    score += penalty * clipped / (hypothesis_norms[n] * norms[n])
        scores.append(10 * score / (order * len(texts)))
    return mean(scores)


def _check(owner: str, captions: Any, references: Any) -> None:
    check_texts(owner, "captions", captions)
    check_text_lists(owner, "references", references)
    check_as_many(owner, "captions", captions, "references", references)


def _ngrams(words: list[str], n: int) -> Counter[Ngram]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _all_ngrams(words: list[str], order: int) -> Counter[Ngram]:
    return sum((_ngrams(words, n + 1) for n in range(order)), Counter())


def _common_subsequence(first: list[str], second: list[str]) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        previous = 0
        for j, other in enumerate(second):
            previous, row[j + 1] = row[j + 1], previous + 1 if word == other else max(row[j], row[j + 1])
    return row[-1]


def score(predictions: list[str], examples: list[Example]) -> dict[str, float]:
    """``cider``, ``bleu1`` to ``bleu4``, ``rouge_l``, and ``cider raw``, of texts cut at their spaces alone, in per
    cent; the first is the main one."""
    references = [example.references for example in examples]
    scores = {"cider": 100 * cider_d(predictions, references)}
    scores |= {f"bleu{i}": 100 * value for i, value in enumerate(bleu(predictions, references), 1)}
    raw = cider_d(predictions, references, words=str.split)
    return scores | {"rouge_l": 100 * rouge_l(predictions, references), "cider raw": 100 * raw}
