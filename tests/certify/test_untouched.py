"""A card is certified in a process of its own: random numbers and flags of this one stay as they are."""

import operator
import os
import random
import warnings

import numpy
import pytest
import torch

from petx import ops
from petx.certify import api
from petx.certify.choice import CertificateWarning
from tests.certify.fake import OnGPU

FLAGS = """are_deterministic_algorithms_enabled is_deterministic_algorithms_warn_only_enabled get_default_dtype
get_float32_matmul_precision get_num_threads is_grad_enabled is_inference_mode_enabled""".split()
BACKENDS = """cuda.matmul.allow_tf32 cuda.matmul.allow_bf16_reduced_precision_reduction cudnn.enabled cudnn.benchmark
cudnn.deterministic cudnn.allow_tf32""".split()


def global_state():
    """What a process has of random numbers and of flags."""
    numpy_state = numpy.random.get_state()
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": (numpy_state[1].tolist(), numpy_state[2:]),
        "environment": dict(os.environ),
        "filled": torch.utils.deterministic.fill_uninitialized_memory,
        "device": torch.get_default_device(),
        "autocast": [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")],
        **{name: getattr(torch, name)() for name in FLAGS},
        **{name: operator.attrgetter(name)(torch.backends) for name in BACKENDS},
    }


@pytest.mark.parametrize("how", ["right", "wrong", "crash"])
def test_nothing_of_torch_is_touched(cards, how):
    cards.script = ("fake_child.py", how)
    torch.manual_seed(3)
    with torch.no_grad(), torch.autocast("cpu"), torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", CertificateWarning)
        before = global_state()
        assert ops.takes("gated_adapter", OnGPU(torch.bfloat16, 8, 512, 768)) and cards.started
        assert global_state() == before
        api.certify(0)
        assert global_state() == before
