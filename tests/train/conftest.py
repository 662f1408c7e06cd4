"""What the tests of training share."""

import signal

import pytest

from petx.train import stopping


@pytest.fixture
def usual_signals():
    """The signals that end a run as a shell gives them, whatever these tests were started by (nohup ignores one)."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in stopping.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
