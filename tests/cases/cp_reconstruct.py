"""Cases of `cp_reconstruct`, PETAL's adapted weights written out."""

from petx.certify.cases.cp_reconstruct import SIGMOID, ReconstructCase, reconstruct

__all__ = ["SIGMOID", "ReconstructCase", "reconstruct", "CASES", "FEW", "GRADCHECKED", "LARGE", "WIDE"]

CASES = [
    reconstruct("none"),
    reconstruct("soft", gate="soft"),
    reconstruct("hard", gate="hard"),
    reconstruct("sigmoid", **SIGMOID),
    reconstruct("diagonal", core="diagonal"),
    reconstruct("diagonal-soft", core="diagonal", gate="soft", scale=3.0),
    reconstruct("diagonal-hard", core="diagonal", gate="hard", threshold=2, scale=-3.0),
    reconstruct("diagonal-sigmoid", core="diagonal", gate="sigmoid", threshold=2, scale=0.5),
    # a threshold for each weight, scale
    reconstruct("soft-each", modules=3, gate="soft", threshold=3, scale=0.5),
    reconstruct("sigmoid-each", modules=3, gate="sigmoid", threshold=3, scale=-1.5),
    reconstruct("none-scaled", scale=-0.3),
    # odd sizes, on and beside the borders of the kernels' tiles
    reconstruct("one-value", modules=1, d_out=1, d_in=1, rank=1, gate="soft"),
    reconstruct("row", modules=3, d_out=1, d_in=67, rank=3, **SIGMOID),
    reconstruct("column", modules=3, d_out=67, d_in=1, rank=3, gate="hard"),
    reconstruct("odd", modules=3, d_out=37, d_in=43, rank=5, threshold=3, **SIGMOID),
    reconstruct("odd-diagonal", modules=2, d_out=37, d_in=43, rank=5, core="diagonal", gate="soft"),
    reconstruct("rank-one", d_out=20, d_in=20, rank=1, gate="soft"),
    reconstruct("rank-above-widths", d_out=9, d_in=7, rank=30, gate="soft"),
    reconstruct("many", modules=13, d_out=16, d_in=16, rank=4, threshold=13, gate="soft"),
]

TINY = dict(d_out=3, d_in=4, rank=2)
GRADCHECKED = [
    reconstruct("none", **TINY, scale=0.5),
    reconstruct("soft", **TINY, gate="soft", threshold=2),
    reconstruct("sigmoid", **TINY, gate="sigmoid", temperature=0.5, scale=-2.0),
    reconstruct("sigmoid-each", **TINY, gate="sigmoid", threshold=2),
    reconstruct("diagonal", **TINY, core="diagonal"),
    reconstruct("diagonal-soft", **TINY, core="diagonal", gate="soft"),
    reconstruct("one", **TINY, modules=1, gate="sigmoid"),
]

WIDE = [
    reconstruct("wide", d_out=72, d_in=136, rank=72, threshold=2, **SIGMOID),
    reconstruct("wide-odd", modules=3, d_out=67, d_in=67, rank=67, gate="soft"),
    reconstruct("wide-none", d_out=130, d_in=72, rank=16),
    reconstruct("wide-diagonal", d_out=65, d_in=129, rank=40, core="diagonal", gate="hard"),
    reconstruct("wide-flat", d_out=3, d_in=520, rank=8, threshold=2, gate="soft"),
    reconstruct("wide-flat-none", d_out=3, d_in=520, rank=8),
    reconstruct("wide-tall", d_out=520, d_in=3, rank=8, **SIGMOID),
    reconstruct("wide-tall-diagonal", d_out=520, d_in=3, rank=8, core="diagonal", gate="hard"),
]

# Several panels of columns, blocks of rows and splits of the CPU kernels: too many values for the emulator.
LARGE = [
    reconstruct("flat", d_out=5, d_in=5003, rank=8, threshold=2, gate="soft"),
    reconstruct("flat-none", d_out=3, d_in=3000, rank=70),
    reconstruct("tall", d_out=5003, d_in=3, rank=8, **SIGMOID),
    reconstruct("tall-diagonal", modules=3, d_out=3000, d_in=17, rank=20, core="diagonal", gate="hard"),
    reconstruct("square", modules=9, d_out=768, d_in=768, rank=64, threshold=9, gate="soft"),
    reconstruct("panels", modules=2, d_out=200, d_in=2300, rank=33, core="diagonal", **SIGMOID),
]

FEW = "none soft hard sigmoid-each diagonal diagonal-sigmoid odd many rank-above-widths".split()
