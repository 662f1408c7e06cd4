"""Cases of `mode_cores`, the cores of all mode vectors."""

from petx.certify.cases.mode_cores import SIGMOID, CoresCase, cores

__all__ = ["SIGMOID", "CoresCase", "cores", "CASES", "FEW", "GRADCHECKED", "WIDE"]

CASES = [
    cores("none"),
    cores("soft", gate="soft"),
    cores("hard", gate="hard"),
    cores("sigmoid", **SIGMOID),
    cores("soft-each", gate="soft", threshold=6),
    cores("hard-each", gate="hard", threshold=6),
    cores("sigmoid-each", **SIGMOID, threshold=6),
    cores("diagonal", core="diagonal"),
    cores("diagonal-soft", core="diagonal", gate="soft"),
    cores("diagonal-hard-each", core="diagonal", gate="hard", threshold=6),
    cores("diagonal-sigmoid-each", core="diagonal", **SIGMOID, threshold=6),
    # odd sizes, on and beside the borders of blocks, splits and tiles
    cores("one-value", count=1, rank=1, gate="soft"),
    cores("one-mode", count=1, rank=9, **SIGMOID),
    cores("rank-one", count=70, rank=1),
    cores("odd", count=7, rank=13, gate="soft", threshold=13),
    cores("diagonal-odd", count=70, rank=67, core="diagonal", **SIGMOID, threshold=67),
    cores("splits", count=5, rank=34, gate="soft"),
]

GRADCHECKED = [
    cores("none", count=3, rank=2),
    cores("soft", count=3, rank=3, gate="soft"),
    cores("sigmoid", count=2, rank=2, gate="sigmoid", threshold=2),
    cores("diagonal-none", count=3, rank=3, core="diagonal"),
    cores("diagonal-soft", count=3, rank=3, core="diagonal", gate="soft", threshold=3),
]

WIDE = [
    cores("wide", count=66, rank=17, gate="hard", threshold=17),
    cores("wide-none", count=66, rank=24),  # whole packs, and splits of dP
    cores("wide-none-odd", count=3, rank=67),
    cores("wide-rank", count=3, rank=66, **SIGMOID),
    cores("wide-rank-each", count=2, rank=66, gate="soft", threshold=66),
    cores("wide-diagonal", count=130, rank=300, core="diagonal", gate="soft"),
]

FEW = "none soft hard-each sigmoid diagonal diagonal-soft diagonal-hard-each odd".split()
