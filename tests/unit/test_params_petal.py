"""``petx params petal``: the counts of PETAL's released code, from the full-size models."""

import json

import pytest

from petx.cli import main

pytestmark = pytest.mark.filterwarnings("error::FutureWarning")  # none reaches the user

# language model, parameters of the frozen model, share of all, of what InstructBLIP trains, of the Q-Former
HOSTS = [
    ("flan-t5-xl", 4_024_347_648 - 1_378_560, 0.0347, 0.746, 0.752),
    ("flan-t5-xxl", 12_311_497_728 - 1_378_560, 0.0113, 0.740, 0.752),
    ("vicuna-7b", 7_914_589_184 - 1_378_560, 0.0177, 0.740, 0.752),
]
VARIATIONS = {
    "diagonal core": 872_832,
    "no experts": 802_176,
    "diagonal core, 4 experts": 674_560,
    "rank 128": 5_308_032,
}
PARTS = {"text": 360_448, "image": 401_408, "modes": 3_456, "experts": 594_816}


def petx_params(capsys, *arguments):
    assert main(["params", "petal", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_every_host_and_variation_has_the_released_codes_counts(capsys):
    rows = petx_params(capsys, "--all")
    assert len(rows) == 10
    for i, (name, frozen, *shares) in enumerate(HOSTS):
        default, released = rows[2 * i : 2 * i + 2]
        for row, scales, trainable in ((default, 18_432, 1_378_560), (released, 36_864, 1_396_992)):
            assert row["language_model"] == name
            parts = {part: row[part] for part in (*PARTS, "query_transform", "trainable", "total")}
            assert parts == PARTS | {
                "query_transform": scales,
                "trainable": trainable,
                "total": frozen + trainable,
            }
        found = [round(released["percent"], 4), *(round(released[f"{k}_percent"], 3) for k in ("trained", "qformer"))]
        assert found == pytest.approx(shares, abs=1e-4)
    assert {row["setting"]: row["trainable"] for row in rows[6:]} == VARIATIONS


def test_single_setting_and_table(capsys):
    (row,) = petx_params(capsys, "--rank", "32", "--expert-gate", "token", "--threshold", "soft", "--experts", "2")
    assert row["text"] == 2 * 32 * 768 + 32**3 + 1 and row["experts"] == 2 * (2 * 49_152 + 64 + 768) + 2 * 769
    assert main(["params", "petal", "--share-image-core"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert len(head) == len(line) and f"{1_378_560 - 64**3:,}" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--language-model gpt", "language_model must be one of flan-t5-xl, flan-t5-xxl, vicuna-7b, got 'gpt'"),
        ("--rank 0", "rank must be a positive integer, got 0"),
        ("--core square", "core must be one of 'full', 'diagonal', got 'square'"),
        ("--all --rank 4", "--all counts what is set already; leave --rank out"),
    ],
)
def test_mistakes_end_with_a_message(capsys, arguments, message):
    assert main(["params", "petal", *arguments.split()]) == 2
    assert message in capsys.readouterr().err
