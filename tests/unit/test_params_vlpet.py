"""``petx params vlpet``: the counts of the VL-PET paper's tables, from the full-size models."""

import json

import pytest

from petx.cli import main

pytestmark = pytest.mark.filterwarnings("error::FutureWarning")  # none reaches the user

# backbone, features, granularity, trainable, total, percent as the paper rounds it
PAPER = [
    ("bart-base", "image", "small", 4_291_020, 143_845_068, 2.98),
    ("bart-base", "image", "middleX", 4_281_804, 143_835_852, 2.98),
    ("bart-base", "image", "middleY", 4_281_792, 143_835_840, 2.98),
    ("bart-base", "image", "large", 6_052_416, 145_606_464, 4.16),
    ("t5-base", "image", "small", 10_518_168, 233_457_816, 4.51),
    ("t5-base", "image", "middleX", 10_499_736, 233_439_384, 4.50),
    ("t5-base", "image", "middleY", 10_499_712, 233_439_360, 4.50),
    ("t5-base", "image", "large", 17_582_208, 240_521_856, 7.31),
    ("bart-base", "video", "small", 3_111_372, 142_665_420, 2.18),
    ("bart-base", "video", "middleX", 3_102_156, 142_656_204, 2.17),
    ("bart-base", "video", "middleY", 3_102_144, 142_656_192, 2.17),
    ("bart-base", "video", "large", 4_872_768, 144_426_816, 3.37),
]
PARTS = {
    ("bart-base", "image", "small"): (1_779_840, 18_444, 889_920, 19_968, 1_582_848),
    ("bart-base", "image", "large"): (1_779_840, 1_779_840, 889_920, 19_968, 1_582_848),
    ("t5-base", "image", "middleX"): (7_100_928, 18_456, 1_779_840, 19_200, 1_581_312),
    ("bart-base", "video", "middleY"): (1_779_840, 9_216, 889_920, 19_968, 403_200),
}


def petx_params(capsys, *arguments):
    assert main(["params", "vlpet", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_all_twelve_settings_are_the_papers(capsys):
    rows = petx_params(capsys, "--all")
    assert len(rows) == 12
    for row, (backbone, features, granularity, trainable, total, percent) in zip(rows, PAPER, strict=True):
        setting = (row["backbone"], row["features"], row["granularity"])
        assert setting == (backbone, features, granularity)
        assert (row["trainable"], row["total"], round(row["percent"], 2)) == (trainable, total, percent), setting
        if setting in PARTS:
            parts = ("encoder_delta", "encoder_gate", "decoder_value", "norms", "visual")
            assert tuple(row[part] for part in parts) == PARTS[setting]


@pytest.mark.parametrize(
    ("arguments", "trainable", "percent"),
    [
        ("--granularity none", 4_272_576, 2.971),
        ("--backbone t5-base --granularity none", 10_481_280, 4.490),
        ("--design down-up-pair", 5_388_864, 3.718),
        ("--modification phm", 4_725_600, 3.275),  # Compacter under VL-PET-large, table 9: 3.28
        ("--modification phm --granularity small", 2_964_204, 2.080),  # 2.08
        ("--modification phm --granularity middleX", 2_954_988, 2.074),  # 2.07
        ("--heads 1 --granularity small", 4_291_020, 2.983),  # VL-Adapter under VL-PET-small: 2.98
        ("--heads 1 --granularity large", 6_052_416, 4.157),  # 4.16
    ],
)
def test_ablations_and_other_methods_adapters(capsys, arguments, trainable, percent):
    (row,) = petx_params(capsys, *arguments.split())
    assert (row["trainable"], round(row["percent"], 3)) == (trainable, percent)


def test_table_is_aligned(capsys):
    assert main(["params", "vlpet"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert len(head) == len(row) and row.split()[-3:] == ["6,052,416", "145,606,464", "4.1567"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--backbone bart-huge", "backbone must be one of bart-base, t5-base, got 'bart-huge'"),
        ("--features sound", "features must be one of image, video, got 'sound'"),
        ("--granularity huge", "granularity must be one of"),
        ("--heads 5", "heads must divide rank"),
        ("--all --backbone t5-base", "--all counts every backbone, features, granularity; leave --backbone out"),
    ],
)
def test_mistakes_end_with_a_message(capsys, arguments, message):
    assert main(["params", "vlpet", *arguments.split()]) == 2
    assert message in capsys.readouterr().err
