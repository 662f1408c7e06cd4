"""What is particular to `mode_cores`; tests/operations/test_operations.py holds it to its reference."""

import pytest
import torch

from petx import functional, reference
from tests.cases.mode_cores import CASES

INF, NAN = float("inf"), float("nan")
BY_NAME = {case.name: case for case in CASES}


@pytest.fixture
def path(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr("petx.ops._fused", set())


both_paths = pytest.mark.parametrize("path", ["fused", "reference"], indirect=True)


@both_paths
@pytest.mark.parametrize("gate", ["soft", "hard", "sigmoid"])
@pytest.mark.parametrize("core", ["full", "diagonal"])
def test_values_on_the_threshold(gate, core, path):
    """Zeros, values at the threshold itself and a threshold below zero: the reference's values and gradients."""
    from petx import reference

    torch.manual_seed(0)
    values = torch.tensor([0.0, 0.5, -0.5, 1.0], dtype=torch.float64)
    if core == "full":
        values = torch.stack([values, -values, values * 2, values + 0.25]).expand(4, 4, 4)
    modes = torch.randn(3, 4, dtype=torch.float64)
    for limit in (0.5, 0.0, -0.5):
        results = []
        for operation in (functional.mode_cores, reference.mode_cores):
            leaves = [values.clone(), modes.clone(), torch.full((4,), limit, dtype=torch.float64)]
            cores = operation(*(leaf.requires_grad_() for leaf in leaves), gate=gate)
            results.append([cores, *torch.autograd.grad(cores.square().sum(), leaves)])
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want)


@both_paths
def test_autocast_leaves_cores_alone(path):
    case = BY_NAME["soft"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = case.run(case.inputs(torch.float32))
    assert inside.dtype == torch.float32 and torch.equal(inside, case.run(case.inputs(torch.float32)))


@both_paths
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(core=None), "core must be a tensor"),
        (dict(core=torch.zeros(2, 2)), r"core must be floating \[R, R, R\] or \[R\], got torch.float32 \[2, 2\]"),
        (dict(core=torch.zeros(2, 2, 3)), "core must be floating"),
        (dict(core=torch.zeros(0)), "core must be floating"),
        (dict(core=torch.zeros(2, dtype=torch.int64)), "core must be floating"),
        (dict(modes=torch.zeros(3, 3)), r"modes must be floating \[any, 2\], got torch.float32 \[3, 3\]"),
        (dict(modes=torch.zeros(3, 2, device="meta")), "modes must be on the device cpu"),
        (dict(threshold=None), r"threshold must be \[1\] or \[2\] with gate='soft', got None"),
        (dict(threshold=torch.zeros(3)), "threshold must be"),
        (dict(gate="none"), "threshold is not used"),
        (dict(gate="other"), "gate must be one of"),
        (dict(temperature=0.0), "temperature must be positive"),
    ],
)
def test_bad_input(changes, message, path):
    good = dict(core=torch.zeros(2, 2, 2), modes=torch.zeros(3, 2), threshold=torch.zeros(1), gate="soft")
    functional.mode_cores(**good)
    with pytest.raises(ValueError, match=f"mode_cores: .*{message}"):
        functional.mode_cores(**good | changes)


@pytest.mark.parametrize("gate", ["soft", "hard", "sigmoid"])
@pytest.mark.parametrize("where, value", [("threshold", v) for v in (NAN, INF, -INF)] + [("core", NAN), ("core", INF)])
@pytest.mark.parametrize("where_too", [None, "modes"])
def test_not_finite_exactly_where_the_reference_is_not(gate, where, value, where_too):
    found = []
    for operation in (functional.mode_cores, reference.mode_cores):
        draw = torch.Generator().manual_seed(0)
        core, modes = (torch.randn(shape, generator=draw) for shape in ((4, 4, 4), (3, 4)))
        leaves = {"core": core, "modes": modes, "threshold": torch.tensor([0.3])}
        for name in {where, where_too} - {None}:
            leaves[name].view(-1)[0] = value if name == where else NAN
        leaves = {name: leaf.requires_grad_(True) for name, leaf in leaves.items()}
        out = operation(**leaves, gate=gate)
        out.sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves.values())])
    for got, wanted in zip(*found, strict=True):
        assert torch.equal(got.isfinite(), wanted.isfinite())
