"""Several threads may run one model at once, as servers do: each gets what it gets alone."""

import copy
import sys
import threading

import pytest
import torch

from petx.tuners._common.threads import OneThread, stack_of
from tests.fixtures.tiny_hosts import batch, make_host, tuned
from tests.fixtures.tiny_vlms import make_vlm, petal, vlm_batch

PASSES = 15


@pytest.fixture
def impatient():
    """Threads that take turns often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def vlpet_on_bart():
    return tuned(make_host("bart")).eval(), [batch("bart", seed=seed) for seed in (2, 3)]


def petal_on_instructblip():
    model = petal(make_vlm("instructblip-t5"), expert_scope="text").eval()
    return model, [vlm_batch("instructblip-t5", seed=seed) for seed in (2, 3)]


@pytest.mark.parametrize("made", [vlpet_on_bart, petal_on_instructblip])
def test_each_gets_what_it_gets_alone(impatient, made):
    model, given = made()
    with torch.no_grad():
        alone = [model(**inputs).logits for inputs in given]
    wrong: list = []

    def passes(inputs, wanted):
        try:
            with torch.no_grad():
                wrong.extend(not torch.equal(model(**inputs).logits, wanted) for _ in range(PASSES))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=passes, args=pair) for pair in zip(given, alone, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == len(given) * PASSES and not any(wrong), wrong


def test_the_lock_is_let_go_in_every_way_out():
    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])

        def forward(self, x):
            return self.layers[0](x)

    model, one = Outer(), OneThread()
    assert stack_of(model, "layers.0") is model and stack_of(model.layers[0], "") is model.layers[0]
    hooks = [*one.connect(model), *one.connect(model.layers[0])]
    model(torch.ones(1, 2))
    with pytest.raises(RuntimeError):
        model(torch.ones(1, 3))
    assert not one._inside and not one._lock._is_owned()
    assert copy.deepcopy(model)(torch.ones(1, 2)).shape == (1, 2)

    def stop(*_):
        raise KeyboardInterrupt

    for interrupted in (model, model.layers[0]):
        handle = interrupted.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            model(torch.ones(1, 2))
        handle.remove()
        model(torch.ones(1, 2))  # after an interrupt the next pass lets go of what the last one kept
        assert not one._inside and not one._lock._is_owned()
    for hook in hooks:
        hook.remove()
    assert not model._forward_hooks and not model._forward_pre_hooks
