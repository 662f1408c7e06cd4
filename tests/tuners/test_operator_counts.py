"""What a tuned model dispatches beyond the frozen one: at most a third of what the literal eager form does."""

import pytest

from tests.fixtures.operator_counts import CASES, counts, shares

MOST = dict.fromkeys(CASES, (1 / 3, 1 / 3)) | {"Q-Former, 12 layers": (0.09, 0.2)}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "layers" in name else name for name in CASES]
)
def test_operators_beyond_the_frozen_model(name):
    found = counts(name)
    assert all(share <= most for share, most in zip(shares(found), MOST[name], strict=True)), found
