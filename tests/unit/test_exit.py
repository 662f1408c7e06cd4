"""A process of the command ends whole beside torch's gloo threads."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys, threading, time
import torch.distributed as dist
from petx._exit import leave

class Kept:
    def __del__(self, write=sys.__stdout__.write):
        write("taken down\\n")

kept = Kept()
if {group}:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
atexit.register(print, "an exit function")
threading.Thread(target=lambda: (time.sleep(0.3), print("a thread's last word"))).start()
sys.stdout.write("unflushed ")
leave({code})
"""


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("group", [True, False])
def test_a_group_of_gloo_leaves_the_interpreter_up(group, code):
    """gloo's threads may not be ended in the middle of a destructor; all else runs as at any end."""
    program = PROGRAM.format(group=group, code=code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    said = ["unflushed a thread's last word", "an exit function"] + ([] if group else ["taken down"])
    assert done.stdout.splitlines() == said


def test_a_closed_output_is_an_error_there_too():
    program = PROGRAM.format(group=True, code=0)
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.DEVNULL, timeout=120)
    assert done.returncode == 1
