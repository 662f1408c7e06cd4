"""Scores of generated answers and captions: VQA soft accuracy, exact match, BLEU, ROUGE-L and CIDEr-D."""

import math
import re
from collections import Counter, defaultdict

__all__ = [
    "bleu",
    "cider_d",
    "exact_match",
    "match_accuracy",
    "normalize_answer",
    "rouge_l",
    "vqa_accuracy",
    "vqa_scores",
]

_NUMBERS = {word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_NUMBERS["none"] = "0"
_ARTICLES = {"a", "an", "the"}
_CONTRACTIONS = {
    word.replace("'", ""): word
    for word in (
        "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
        "i'm i've isn't it'd it'll let's ma'am might've mightn't must've mustn't needn't not've o'clock shan't she'd "
        "should've shouldn't somebody's someone's something's that's there'd there're there's they'd they'll they're "
        "they've wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll "
        "who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"
    ).split()
}
_PUNCTUATION = r"""[;/\[\]"{}()=+\\_\-><@`,?!:*&%$#~^|]"""


def normalize_answer(text):
    """An answer as the VQA evaluation compares it: lower case, no articles or punctuation, digits, full contractions.

    A punctuation mark beside a space or an end vanishes, one inside a word becomes a space; a comma between digits
    and a full stop that is no decimal point vanish.
    """
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower().replace("\n", " ").replace("\t", " ").strip())
    # Between two other characters a mark becomes a space; beside a space or an end it goes.
    text = re.sub(rf"(?<=\S){_PUNCTUATION}(?=\S)", " ", text)
    text = re.sub(_PUNCTUATION, "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", "", text)
    kept = [_NUMBERS.get(word, word) for word in text.split() if word not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in kept)


def vqa_scores(annotations):
    """``{normalised answer: soft accuracy}`` for one question's annotators' answers.

    An answer scores min(matches / 3, 1) against each set that leaves one annotator out, averaged over the sets.
    """
    given = [normalize_answer(answer) for answer in annotations]
    scores = {}
    for answer, count in Counter(given).items():
        without_one_of_it = min((count - 1) / 3, 1)
        scores[answer] = (count * without_one_of_it + (len(given) - count) * min(count / 3, 1)) / len(given)
    return scores


def vqa_accuracy(predictions, annotations):
    """Mean VQA soft accuracy; ``annotations`` holds one list of the annotators' answers (normally ten) a question."""
    pairs = zip(predictions, annotations, strict=True)
    return _mean([vqa_scores(answers).get(normalize_answer(prediction), 0.0) for prediction, answers in pairs])


def match_accuracy(predictions, annotations):
    """Mean of min(matches / 3, 1) over all annotators' answers, as A-OKVQA's direct answers are scored."""
    scores = []
    for prediction, answers in zip(predictions, annotations, strict=True):
        given = [normalize_answer(answer) for answer in answers]
        scores.append(min(given.count(normalize_answer(prediction)) / 3, 1.0))
    return _mean(scores)


def exact_match(predictions, answers):
    """Share of predictions equal to their answer."""
    return _mean([float(prediction == answer) for prediction, answer in zip(predictions, answers, strict=True)])


def caption_words(text):
    """Words of a caption, lower case, without punctuation. Simpler than the PTB tokenizer of the COCO evaluation."""
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower())


def bleu(captions, references, order=4):
    """Corpus BLEU-1 to BLEU-``order`` (Papineni et al., 2002), the closest reference's length for brevity.

    ``captions``: list of texts; ``references``: for each, a list of texts. A precision of zero counts as 1e-15 over its
    n-grams, as in the COCO evaluation, so a corpus without one matching 4-gram still has a score.
    """
    matched, total, length, reference_length = [0] * order, [0] * order, 0, 0
    for caption, texts in zip(captions, references, strict=True):
        words, others = caption_words(caption), [caption_words(text) for text in texts]
        length += len(words)
        reference_length += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        for n in range(order):
            grams, allowed = _ngrams(words, n + 1), Counter()
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


def rouge_l(captions, references, beta=1.2):
    """Mean ROUGE-L (Lin, 2004): F-measure of the longest common subsequence, with the references' best precision
    and best recall."""
    scores = []
    for caption, texts in zip(captions, references, strict=True):
        words, precision, recall = caption_words(caption), 0.0, 0.0
        for other in map(caption_words, texts):
            common = _common_subsequence(words, other)
            precision = max(precision, common / max(len(words), 1))
            recall = max(recall, common / max(len(other), 1))
        weighted = recall + beta**2 * precision
        scores.append((1 + beta**2) * precision * recall / weighted if weighted else 0.0)
    return _mean(scores)


def cider_d(captions, references, order=4, sigma=6.0):
    """Mean CIDEr-D (Vedantam et al., 2015), document frequencies from ``references``; 10 is a perfect match.

    The mean over n-gram orders and references of the cosine of clipped tf-idf vectors, times a Gaussian penalty on the
    difference in length, times 10.
    """
    counted = [[_all_ngrams(caption_words(text), order) for text in texts] for texts in references]
    frequency = Counter(gram for texts in counted for gram in set().union(*texts))
    documents = math.log(max(len(references), 1))

    def vectors(counts):
        weights = [defaultdict(float) for _ in range(order)]
        for gram, count in counts.items():
            weights[len(gram) - 1][gram] = count * (documents - math.log(max(frequency[gram], 1)))
        norms = [math.sqrt(sum(value**2 for value in weight.values())) for weight in weights]
        return weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2)

    scores = []
    for caption, texts in zip(captions, counted, strict=True):
        hypothesis, hypothesis_norms, hypothesis_length = vectors(_all_ngrams(caption_words(caption), order))
        score = 0.0
        for reference, norms, length in map(vectors, texts):
            penalty = math.exp(-((hypothesis_length - length) ** 2) / (2 * sigma**2))
            for n in range(order):
                if hypothesis_norms[n] and norms[n]:
                    other = reference[n]
                    clipped = sum(min(value, other[gram]) * other[gram] for gram, value in hypothesis[n].items())
                    score += penalty * clipped / (hypothesis_norms[n] * norms[n])
        scores.append(10 * score / (order * len(texts)))
    return _mean(scores)


def _mean(values):
    return sum(values) / len(values) if values else float("nan")


def _ngrams(words, n):
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _all_ngrams(words, order):
    return sum((_ngrams(words, n + 1) for n in range(order)), Counter())


def _common_subsequence(first, second):
    row = [0] * (len(second) + 1)
    for word in first:
        previous = 0
        for j, other in enumerate(second):
            previous, row[j + 1] = row[j + 1], previous + 1 if word == other else max(row[j], row[j + 1])
    return row[-1]
