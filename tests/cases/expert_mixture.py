"""Cases of `expert_mixture`, PETAL's mixture of instruction experts."""

from petx.certify.cases.expert_mixture import SAMPLE, TOKEN, MixtureCase, mixture

__all__ = ["SAMPLE", "TOKEN", "MixtureCase", "mixture", "CASES", "FEW", "GRADCHECKED", "WIDE"]

CASES = [
    # gates, with each activation
    mixture("uniform"),
    mixture("token", **TOKEN),
    mixture("sample", **SAMPLE),
    mixture("uniform-gelu", activation="gelu"),
    mixture("token-gelu", activation="gelu_tanh", **TOKEN),
    mixture("sample-relu", activation="relu", **SAMPLE),
    mixture("token-exact", activation="gelu", **TOKEN),
    # some of the experts
    mixture("token-top-2", top_k=2, **TOKEN),
    mixture("token-top-1", top_k=1, activation="relu", **TOKEN),
    mixture("sample-top-2", experts=4, top_k=2, activation="gelu", **SAMPLE),
    mixture("token-top-all", top_k=3, **TOKEN),
    # some of the tokens
    mixture("uniform-scope", scope=True, activation="gelu"),
    mixture("token-scope", scope=True, **TOKEN),
    mixture("sample-scope", scope=True, **SAMPLE),
    mixture("sample-pool", pool=True, **SAMPLE),
    mixture("sample-pool-scope", scope=True, pool=True, top_k=2, activation="gelu_tanh", **SAMPLE),
    # no biases
    mixture("uniform-unbiased", bias=False),
    mixture("token-unbiased", bias=False, **TOKEN),
    mixture("sample-unbiased", bias=False, pool=True, **SAMPLE),
    # weights of x and of the experts
    mixture("all-expert", alpha=0.0, beta=1.0, **TOKEN),
    mixture("no-expert", alpha=1.0, beta=0.0, **TOKEN),
    mixture("negative", alpha=-0.5, beta=-2.0, activation="relu"),
    # odd sizes: widths that no vector divides, one token, one expert, rows that straddle blocks and splits
    mixture("one-token", batch=(1, 1), scope=True, **SAMPLE),
    mixture("no-batch", batch=(7,), pool=True, **SAMPLE),
    mixture("four-dims", batch=(2, 3, 4), pool=True, activation="gelu", **SAMPLE),
    mixture("one-expert", experts=1, rank=5, activation="gelu", **TOKEN),
    mixture("rank-one", experts=5, rank=1, top_k=3, **TOKEN),
    mixture("many-experts", experts=17, rank=2, top_k=4, activation="gelu", **TOKEN),
    mixture("odd", batch=(3, 43), d=37, experts=3, rank=5, activation="gelu", scope=True, **TOKEN),
    mixture("odd-sample", batch=(3, 43), d=37, experts=3, rank=5, activation="relu", pool=True, **SAMPLE),
    mixture("odd-uniform", batch=(3, 43), d=37, experts=3, rank=5, bias=False, scope=True),
    mixture("few-rows", batch=(2, 33), d=133, experts=3, rank=23, **TOKEN),
    mixture("splits", batch=(13, 97), d=40, experts=4, rank=4, scope=True, **TOKEN),
    mixture("splits-sample", batch=(13, 97), d=40, experts=4, rank=4, pool=True, activation="gelu_tanh", **SAMPLE),
    mixture("splits-uniform", batch=(13, 97), d=40, experts=4, rank=4),
]

TINY = dict(batch=(2, 3), d=4, experts=3, rank=2)
GRADCHECKED = [
    mixture("uniform", **TINY, activation="gelu"),
    mixture("token", **TINY, activation="gelu", **TOKEN),
    mixture("token-top-2", **TINY, top_k=2, scope=True, **TOKEN),
    mixture("sample", **TINY, activation="gelu_tanh", **SAMPLE),
    mixture("sample-pool", **TINY, top_k=2, scope=True, pool=True, **SAMPLE),
    mixture("relu", **TINY, activation="relu", bias=False, **SAMPLE),
]

WIDE = [
    mixture("wide", batch=(2, 35), d=200, experts=4, rank=18, activation="gelu_tanh", **TOKEN),
    mixture("wide-odd", batch=(1, 67), d=131, experts=3, rank=23, activation="gelu", scope=True, **TOKEN),
    mixture("wide-sample", batch=(2, 65), d=136, experts=5, rank=16, pool=True, activation="relu", **SAMPLE),
    # an expert's columns by more than eight lanes' runs of eight
    mixture("wide-rank", batch=(1, 19), d=24, experts=2, rank=75, activation="gelu", scope=True, **TOKEN),
    mixture("many-sample", batch=(2, 33), d=40, experts=37, rank=1, top_k=4, pool=True, **SAMPLE),
    mixture("wide-uniform", batch=(2, 35), d=160, experts=6, rank=24),
    mixture("wide-top", batch=(1, 66), d=72, experts=66, rank=2, top_k=5, **TOKEN),
]

FEW = """uniform-gelu token-gelu token-top-2 sample-pool-scope sample-relu uniform-scope token-unbiased odd odd-uniform
splits splits-sample one-token""".split()
