"""What the tests of training share."""

import signal

import pytest

from petx.train import stopping


@pytest.fixture
def usual_signals():
    """The signals that end a run as a shell gives them, whatever these tests were started by: nohup ignores one, and a
    script's background Ctrl-C."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in stopping.SIGNALS}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
