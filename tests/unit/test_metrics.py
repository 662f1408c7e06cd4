"""Metrics against values computed by hand, and once by pycocoevalcap 1.2."""

import math

import pytest

from petx import metrics
from petx.data.examples import Example
from petx.metrics import _official

# BLEU-1 to 4, CIDEr and ROUGE-L below are pycocoevalcap 1.2's for these captions.
CAPTIONS = ["a red circle on a table", "two dogs run in the park", "a man rides a horse", "the cat sleeps", "a"]
REFERENCES = [
    ["a red circle lies on the table", "a red disc on a table"],
    ["two dogs running in a park", "dogs play in the park near a tree"],
    ["a man on a brown horse", "a person rides a horse on the beach", "man rides horse"],
    ["a cat is sleeping on the sofa"],
    ["a bird"],
]


def test_captions_score_as_in_the_coco_evaluation():
    assert metrics.bleu(CAPTIONS, REFERENCES) == pytest.approx(
        [0.6799080270, 0.5926787642, 0.4447791770, 5.3618517749e-05], rel=1e-8
    )
    assert metrics.cider_d(CAPTIONS, REFERENCES) == pytest.approx(1.9280777918256877, rel=1e-12)
    assert metrics.rouge_l(CAPTIONS, REFERENCES) == pytest.approx(0.6444947037830222, rel=1e-12)


def test_bleu_by_hand():
    # 3 of 4 words match, clipped ("the" twice in the reference); 1 of 3 bigrams; as long as the reference.
    scores = metrics.bleu(["the the the cat"], [["the cat the mat"]], order=2)
    assert scores == pytest.approx([3 / 4, math.sqrt(3 / 4 * 1 / 3)], rel=1e-8)
    # Half as long as the reference: both words match, brevity exp(1 - 4 / 2).
    assert metrics.bleu(["the cat"], [["the cat sat down"]], order=1) == pytest.approx([math.exp(-1)], rel=1e-8)


def test_rouge_l_by_hand():
    # Longest common subsequence "a c e": precision 3/4, recall 3/5.
    precision, recall = 3 / 4, 3 / 5
    wanted = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert metrics.rouge_l(["a c x e"], [["a b c d e"]]) == pytest.approx(wanted)


def test_cider_d_by_hand():
    # Two documents of one word each: df 1, idf log 2; equal words score 1 at order 1 and nothing above, so 10 / 4.
    assert metrics.cider_d(["dog", "bird"], [["dog"], ["cat"]]) == pytest.approx((10 / 4 + 0) / 2)
    # A perfect match at every order is 10.
    assert metrics.cider_d(["a b c d e", "v w x y z"], [["a b c d e"], ["v w x y z"]]) == pytest.approx(10)


def test_cider_on_raw_text_counts_marks_and_capitals():
    """As PETAL's released code scores captions: "A dog." is another pair of words than "a dog"."""

    examples = [Example("", (), (), (text,)) for text in ("a dog runs far away", "one cat sleeps all day")]
    scores = metrics.find("caption")(["A dog runs far away.", "one cat sleeps all day"], examples)
    assert scores["cider"] == pytest.approx(1000)
    # By hand, raw: of the first dog, runs and far match (3 of 5 words of equal weight), dog runs, runs far of 4 pairs,
    # one of 3 triples and no quadruple; the second is perfect.
    first = (3 / 5 + 2 / 4 + 1 / 3 + 0) / 4
    assert scores["cider raw"] == pytest.approx(100 * (10 * first + 10) / 2)


def test_vqa_accuracy_leaves_one_annotator_out():
    yes = {count: metrics.vqa_scores(["yes"] * count + ["no"] * (10 - count))["yes"] for count in range(1, 6)}
    assert yes == pytest.approx({1: 0.3, 2: 0.6, 3: 0.9, 4: 1.0, 5: 1.0})
    annotations = [["yes"] * 10, ["red"] * 3 + ["dark red"] * 7, ["2"] * 10]
    assert metrics.vqa_accuracy(["Yes.", "red", "three"], annotations) == pytest.approx((1 + 0.9 + 0) / 3)


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("The Red Car.", "red car"),
        ("two", "2"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("1,000", "1000"),
        ("3.5 m", "3.5 m"),
        ("t-shirt", "t shirt"),
        ("black/white", "black white"),
        ("yes!", "yes"),
        ("a\nb", "b"),
        ("  an apple ", "apple"),
    ],
)
def test_answers_are_normalised(given, wanted):
    assert metrics.normalize_answer(given) == wanted


def test_exact_match():
    assert metrics.exact_match(["a", "b", "c", "d"], ["a", "b", "x", "D"]) == 0.5
    with pytest.raises(ValueError):
        metrics.exact_match(["a"], [])


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("The Red Car.", "red car"),
        ("two", "2"),
        ("dont know", "don't know"),
        ("t-shirt", "t shirt"),
        ("black - white t-shirt", "black white tshirt"),  # a mark beside a space goes wherever it stands
        ("1,000 t-shirts", "1000 tshirts"),  # and with a comma between digits every mark does
        ("3.5 m.", "3.5 m"),
        ("it's 5:30", "it's 5:30"),
    ],
)
def test_predictions_are_changed_as_the_released_evaluation_does(given, wanted):
    assert _official.prediction(given) == wanted


def test_the_released_accuracy_leaves_one_annotator_out():
    given = ("yes",) * 2 + ("no",) * 8
    assert _official.soft_accuracy("Yes!", given) == pytest.approx(0.6)
    assert _official.soft_accuracy("no", given) == pytest.approx(1.0)
    assert _official.soft_accuracy("no.", ("no.",) * 10) == 0.0  # annotators who agree are taken as they are


def test_exact_match_is_with_the_first_annotator():
    """Also where the file lists another answer first, and in a run as in a prediction file."""
    given = [Example("q", (), (("two", 0.3), ("2", 1.0)), references=("2", "two")), Example("q", (), (("red", 1.0),))]
    assert metrics.find("exact")(["2", "red"], given) == {"accuracy": 100}


@pytest.mark.parametrize("name", ["gqa", "textvqa", "vqa"])
def test_a_prediction_that_is_no_text_is_named(name):
    example = Example(images=("a",), text="what?", answers=(("red", 1.0),), references=("red",))
    with pytest.raises(ValueError, match=rf"{name}\.score: predictions\[1\] must be a text, got NoneType"):
        metrics.find(name)(["red", None], [example, example])
