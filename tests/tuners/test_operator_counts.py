"""What a tuned model dispatches beyond the frozen one: at most a third of what the literal eager form does."""

import pytest

from tests.fixtures.operator_counts import CASES, counts, shares

# The Q-Former's twelve layers share what is computed once; each layer's projections come one by one.
MOST = {name: 1 / 3 for name in CASES} | {"Q-Former, 12 layers": 0.41}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "layers" in name else name for name in CASES]
)
def test_operators_beyond_the_frozen_model(name):
    found = counts(name)
    assert all(share <= MOST[name] for share in shares(found)), found
