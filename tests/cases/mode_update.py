"""Cases of `mode_update`, PETAL's update beside K projections of one input."""

from petx.certify.cases.mode_update import DROPOUT_SEED, ModeCase, modes

__all__ = ["DROPOUT_SEED", "ModeCase", "modes", "CASES", "FEW", "GRADCHECKED", "WIDE"]

CASES = [
    modes("one", count=1),
    modes("two", count=2),
    modes("three"),
    modes("four", count=4),
    modes("diagonal", core="diagonal"),
    modes("alone", bases=False),
    modes("diagonal-alone", core="diagonal", bases=False, count=2),
    modes("projected", u=False, count=2),
    modes("projected-diagonal", u=False, core="diagonal", bases=False),
    modes("beside", batch=(2, 70), beside=True),
    modes("beside-aligned", batch=(2, 35), d_out=64, rank=16, beside=True, dropout=0.1),
    modes("beside-one-token", batch=(1, 1), beside=True, count=2),
    # dropout
    modes("dropout", dropout=0.1),
    modes("dropout-0.9", dropout=0.9),
    modes("dropout-shared", dropout=0.5, shared_mask=True),
    modes("dropout-diagonal", core="diagonal", dropout=0.1),
    modes("dropout-shared-diagonal", core="diagonal", dropout=0.5, shared_mask=True),
    modes("dropout-projected", u=False, dropout=0.1, count=2),
    # odd sizes: widths that no vector divides, one token, rows that straddle blocks and splits
    modes("square", d_in=24, d_out=24),
    modes("one-token", batch=(1, 1), dropout=0.1),
    modes("vector", batch=(), dropout=0.1),
    modes("four-dims", batch=(2, 3, 4)),
    modes("odd", batch=(3, 43), d_in=37, d_out=35, rank=5, dropout=0.1),
    modes("odd-shared", batch=(3, 43), d_in=37, d_out=35, rank=5, dropout=0.1, shared_mask=True),
    modes("odd-diagonal", batch=(3, 43), d_in=35, d_out=37, rank=7, core="diagonal", dropout=0.1),
    modes("rank-one", batch=(2, 20), rank=1, dropout=0.5),
    modes("narrow", batch=(2, 20), d_in=1, d_out=1, rank=3),
    modes("few-rows", batch=(2, 33), d_in=133, d_out=130, rank=66, dropout=0.1),
    modes("splits", batch=(13, 97), d_in=40, d_out=36, rank=16, dropout=0.1),
    modes("splits-shared", batch=(13, 97), d_in=40, d_out=36, rank=15, dropout=0.1, shared_mask=True, count=2),
    modes("splits-diagonal", batch=(13, 97), d_in=40, d_out=36, rank=16, core="diagonal", dropout=0.1),
]

TINY = dict(batch=(2, 2), d_in=3, d_out=4, rank=2)
GRADCHECKED = [
    modes("full", **TINY),
    modes("dropout", **TINY, dropout=0.5),
    modes("shared", **TINY, dropout=0.5, shared_mask=True, count=2),
    modes("diagonal", **TINY, core="diagonal", dropout=0.5, count=4),
    modes("projected", **TINY, u=False, bases=False, count=2),
]

WIDE = [
    modes("wide", batch=(2, 35), d_in=200, d_out=136, rank=72, dropout=0.1),
    modes("wide-odd", batch=(1, 67), d_in=131, d_out=67, rank=65, count=2, dropout=0.1, shared_mask=True),
    modes("wide-diagonal", batch=(2, 35), d_in=136, d_out=200, rank=136, core="diagonal", dropout=0.1),
    modes("wide-projected", batch=(2, 65), d_out=131, rank=80, u=False, count=4),
    # 68 tiles of each projection's results, two a block of the CUDA forward
    modes("wide-shares", batch=(2,), d_in=3, d_out=4301, rank=3, count=4, dropout=0.1),
    # depths that few rows split among blocks, the last split shorter, and two tiles of ranks
    modes("deep", batch=(70,), d_in=331, d_out=643, rank=66, count=2, dropout=0.1),
    modes("deep-one", batch=(5,), d_in=150, d_out=720, rank=8, count=1),
    modes("wide-alone", batch=(2, 65), d_in=72, d_out=72, rank=64, bases=False, count=1),
]

FEW = """one three diagonal alone projected dropout dropout-shared dropout-shared-diagonal one-token odd splits
splits-shared""".split()
