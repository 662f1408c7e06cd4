"""How several workers share the suite."""

import gc
import os

import pytest

from tests import lanes

SLOW_FIXTURES = {"whole_run"}


@pytest.fixture(scope="module")
def whole_run():
    return "made once"


def test_users_of_a_whole_run_stay_on_one_worker(whole_run, request):
    assert request.node.get_closest_marker("slow")
    assert request.node.get_closest_marker("xdist_group").args == ("tests/unit/test_lanes.py",)
    if "PYTEST_XDIST_WORKER" in os.environ:  # xdist has read it
        assert request.node.nodeid.endswith("@tests/unit/test_lanes.py")


def test_others_go_to_any(request):
    assert not request.node.get_closest_marker("xdist_group") and request.node.get_closest_marker("unit")
    assert 1 <= lanes.cores() <= os.cpu_count()


def test_the_garbage_collector_rests_while_tests_are_collected_and_no_longer():
    assert gc.isenabled() and gc.get_freeze_count() > 100_000
    with pytest.raises(KeyError), lanes.collector_resting():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
