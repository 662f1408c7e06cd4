"""Cases of `gated_adapter`, VL-PET's adapter site."""

from petx.certify.cases.gated_adapter import BART_TAIL, DROPOUT_SEED, T5_TAIL, SiteCase, site

__all__ = ["BART_TAIL", "DROPOUT_SEED", "T5_TAIL", "SiteCase", "site", "CASES", "FEW", "GRADCHECKED", "WIDE"]

CASES = [
    # granularities, alone and with each host's tail
    site("none", x=False),
    site("large", granularity="large"),
    site("middleX", granularity="middleX"),
    site("middleY", granularity="middleY"),
    site("small", granularity="small"),
    site("none-bart", **BART_TAIL),
    site("large-bart", granularity="large", **BART_TAIL),
    site("middleX-bart", granularity="middleX", **BART_TAIL),
    site("middleY-bart", granularity="middleY", **BART_TAIL),
    site("small-bart", granularity="small", **BART_TAIL),
    site("large-t5", granularity="large", **T5_TAIL),
    site("small-t5", granularity="small", **T5_TAIL),
    # an eps whose rounding to float32 shows in a result of float64
    site("large-rms", granularity="large", residual=True, norm="rms", eps=0.3),
    site("far-bart", granularity="middleY", far=30.0, **BART_TAIL),
    # the options of the paper's text and of the released code
    site("large-exact", granularity="large", activation="gelu", **BART_TAIL),
    site("middleX-original", granularity="middleX", gate_input="original", **BART_TAIL),
    site("small-original", granularity="small", gate_input="original", **BART_TAIL),
    site("middleY-sigmoid", granularity="middleY", middle_y="sigmoid", **BART_TAIL),
    site("small-masked", granularity="small", mask=True, **BART_TAIL),
    site("small-padded", batch=(9, 1), granularity="small", mask=True),  # samples that are all padding
    site("small-masked-original", granularity="small", mask=True, gate_input="original"),
    # head blocks of the up projection (down-up-pair)
    site("pair", heads=4, granularity="large", **BART_TAIL),
    site("pair-small", heads=2, granularity="small"),
    # placements
    site("parallel-large", granularity="large", placement="parallel", **BART_TAIL),
    site("parallel-small", granularity="small", placement="parallel"),
    site("value", d=16, d_x=24, placement="parallel"),
    # every decoder layer's value adapter on one encoder output: the layers are heads
    site("value-layers", d=3 * 16, d_x=24, r=3 * 5, heads=3, placement="parallel"),
    site("parallel-large-wide-x", d=16, d_x=24, granularity="large", placement="parallel"),
    site("unused-x", granularity="middleY", x=True),
    # a residual stream in float32 beside 16 bits, as mixed precision has it
    site("stream-bart", granularity="large", stream=True, **BART_TAIL),
    site("stream-t5", stream=True, **T5_TAIL),  # nothing else reads x
    site("stream-middleX", granularity="middleX", gate_input="original", stream=True, **BART_TAIL),
    site("stream-small", granularity="small", mask=True, stream=True, **BART_TAIL),
    site("stream-rms", granularity="middleY", stream=True, residual=True, norm="rms", eps=1e-6),
    site("stream-parallel", granularity="large", placement="parallel", stream=True, **T5_TAIL),
    site("stream-odd", batch=(3, 43), d=37, r=5, r_g=3, granularity="large", stream=True, **BART_TAIL),
    site("stream-splits", batch=(13, 97), d=40, r=16, granularity="middleX", stream=True, **BART_TAIL),
    # no biases
    site("large-unbiased", granularity="large", bias=False, **BART_TAIL),
    site("middleX-unbiased", granularity="middleX", bias=False),
    site("small-unbiased", granularity="small", bias=False),
    # dropout
    site("dropout-0.9", granularity="large", dropout=0.9, residual=True),
    site("dropout-no-residual", granularity="middleX", dropout=0.5),
    site("scale-alone", granularity="large", residual=True, scale=0.3),
    # odd sizes: widths that no vector divides, one token, rows that straddle blocks and splits
    site("one-token", batch=(1, 1), granularity="large", **BART_TAIL),
    site("no-batch", batch=(7,), granularity="small", mask=True),
    site("four-dims", batch=(2, 3, 4), granularity="small"),
    site("odd", batch=(3, 43), d=37, r=5, r_g=3, granularity="large", **BART_TAIL),
    site("odd-small", batch=(3, 43), d=37, r=5, granularity="small", mask=True, **BART_TAIL),
    site("odd-pair", batch=(2, 33), d=33, r=9, heads=3, granularity="middleX", **BART_TAIL),
    site("rank-one", batch=(2, 20), d=20, r=1, r_g=1, granularity="large"),
    site("few-rows", batch=(2, 33), d=133, r=66, r_g=65, granularity="large", **BART_TAIL),
    site("splits", batch=(13, 97), d=40, r=16, r_g=16, granularity="large", **BART_TAIL),
    site("splits-whole", batch=(2, 512), d=16, granularity="large"),  # tokens that two splits divide
    site("splits-small", batch=(13, 97), d=40, r=16, granularity="small", **T5_TAIL),
    site("splits-middleX", batch=(13, 97), d=40, r=16, granularity="middleX", **BART_TAIL),
]

TINY = dict(batch=(2, 2), d=4, r=2, r_g=2)
GRADCHECKED = [
    site("none", **TINY, x=False),
    site("large", **TINY, granularity="large", **BART_TAIL),
    site("middleX", **TINY, granularity="middleX", **BART_TAIL),
    site("middleX-original", **TINY, granularity="middleX", gate_input="original"),
    site("middleY", **TINY, granularity="middleY", **T5_TAIL),
    site("middleY-sigmoid", **TINY, granularity="middleY", middle_y="sigmoid"),
    site("small", **TINY, granularity="small", mask=True, **BART_TAIL),
    site("small-original", **TINY, granularity="small", gate_input="original", residual=True, norm="rms"),
    site("exact-pair", **TINY, granularity="large", heads=2, activation="gelu"),
    site("parallel", **TINY, granularity="large", placement="parallel", residual=True),
    site("value", **TINY, d_x=3, placement="parallel"),
]

WIDE = [
    site("wide", batch=(2, 35), d=200, r=72, r_g=136, granularity="large", **BART_TAIL),
    site("wide-odd", batch=(1, 67), d=131, r=67, r_g=65, granularity="large", **BART_TAIL),
    site("wide-pair", batch=(2, 35), d=160, r=144, heads=2, granularity="middleX", **BART_TAIL),
    site("wide-small", batch=(2, 65), d=136, r=72, granularity="small", mask=True, **T5_TAIL),
    site("wide-value", batch=(2, 65), d=72, d_x=200, r=80, placement="parallel"),
    site("wide-value-layers", batch=(2, 65), d=3 * 72, d_x=200, r=3 * 24, heads=3, placement="parallel"),
    site("wide-stream", batch=(2, 35), d=200, r=72, r_g=136, granularity="large", stream=True, **BART_TAIL),
    site("wide-stream-small", batch=(2, 65), d=136, r=72, granularity="small", stream=True, **T5_TAIL),
    site("wide-unread-x", batch=(2, 40), d=72, d_x=136, r=16, r_g=8, granularity="large"),
]

FEW = """none large-bart middleX-bart middleY-sigmoid small-masked large-rms large-exact pair parallel-large-wide-x
value-layers stream-bart odd splits splits-small one-token""".split()
