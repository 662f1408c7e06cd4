"""Words of captions against Stanford's PTBTokenizer 3.4.1, as pycocoevalcap 1.2 runs it."""

import json
from pathlib import Path

import pytest

from petx import metrics
from petx.metrics.caption import caption_words

# [caption, words] of 100 captions and 100 probes, each read by itself.
CAPTIONS = json.loads(Path(__file__).parents[1].joinpath("fixtures", "ptb_captions.json").read_text(encoding="utf-8"))


def test_two_hundred_captions_are_cut_as_by_the_tokenizer():
    assert len(CAPTIONS) == 200
    differ = [(caption, wanted, got) for caption, wanted in CAPTIONS if (got := caption_words(caption)) != wanted]
    assert not differ


@pytest.mark.parametrize(
    "caption, words",
    [
        ("", ""),
        (" \n", ""),
        ("A man's dog isn't here.", "a man 's dog is n't here"),
        ("two\nlines, one\tcaption", "two lines one caption"),
        ("cafe\u0301 caf\u00e9", "cafe\u0301 caf\u00e9"),
        ("3 1/2 (or so)", "3 1/2 -lrb- or so -rrb-"),
        ("a no. 5 and a no.", "a no. 5 and a no"),
        ("\U0001f600 ok\u200b", "ok"),
    ],
)
def test_captions_by_hand(caption, words):
    assert caption_words(caption) == words.split(" ") * bool(words)


@pytest.mark.parametrize("piece", ["\u03b9", "\u0345a", "a'", "<a ", "www.a", ".-", "(^"])
def test_a_degenerate_caption_takes_no_time(piece):
    """An iota could be read in two ways, so that each one more doubled the time."""
    assert "".join(caption_words(piece * 300 + " b")).endswith("b")


def test_scores_are_those_of_the_coco_evaluation_on_raw_text():
    """BLEU-1 to 4, CIDEr and ROUGE-L below are pycocoevalcap 1.2's, its tokenizer included, for these captions."""
    captions = [caption for caption, _ in CAPTIONS[:100]]
    given = [[one.replace(" a ", " the ").replace(".", ""), captions[(i + 1) % 100]] for i, one in enumerate(captions)]
    assert metrics.bleu(captions, given) == pytest.approx(
        [0.9318423855155146, 0.8773176512629273, 0.8264619448277309, 0.7813939491473245], rel=1e-12
    )
    assert metrics.rouge_l(captions, given) == pytest.approx(0.9191926749011148, rel=1e-12)
    assert metrics.cider_d(captions, given) == pytest.approx(3.9096435512361207, rel=1e-12)
