"""The matrix products of an operation alone, through torch, into memory that is there already.

They compute nothing of use and are no peer: they are the time that no form with the same products can go below. A
product is ("out", "a", "b") for out = a b, an operand's name with ".T" for its transpose; ``x[k]`` is the k-th part of
a tensor of three dimensions, ``dy0``, ``dy1``, ... are the outgoing gradients. What only has the right shape is taken
in place of what an element-wise step would have made.
"""

import torch

from petx.bench.case import PRODUCTS, Arm, Unavailable


def alone(forward, backward, outputs, shape=None):
    """The arm that runs the products ``forward``, of which ``outputs`` are the results, and ``backward`` after them.

    ``shape(activations)`` is that of an output, where it is no matrix.
    """

    def build(case, problem):
        fixed = _matrices(problem.parameters | problem.frozen)
        if case.dtype.itemsize < 4 and next(iter(fixed.values())).device.type == "cpu":
            raise Unavailable("measured in float32 on a CPU, where torch's 16-bit products may be far slower")
        made, given = {}, {}  # results by name; what the step was called with

        def operand(name):
            plain = name.removesuffix(".T")
            found = next(place[plain] for place in (given, fixed, made) if plain in place)
            return found if plain == name else found.T

        def multiply(products):
            for name, a, b in products:
                left, right = operand(a), operand(b)
                if name not in made:
                    made[name] = left.new_empty(left.shape[0], right.shape[1])
                torch.mm(left, right, out=made[name])

        def run_forward(activations):
            given.update(_matrices(activations))
            multiply(forward)
            results = [made[name].detach() for name in outputs]
            return tuple(y.view(shape(activations)) if shape else y for y in results)

        def run_backward(gradients):
            pairs = zip(outputs, gradients, strict=True)
            given.update({f"dy{k}": dy.reshape(made[name].shape) for k, (name, dy) in enumerate(pairs)})
            multiply(backward)

        leaves = list(problem.parameters.values())
        return lambda activations: _Products.apply(run_forward, run_backward, activations, *leaves), leaves

    return Arm(PRODUCTS, build)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run_forward, run_backward, activations, *leaves):
        ctx.run_backward, ctx.inputs = run_backward, 3 + len(leaves)
        ctx.set_materialize_grads(False)
        return run_forward(activations)

    @staticmethod
    def backward(ctx, *gradients):
        ctx.run_backward(gradients)
        return (None,) * ctx.inputs


def _matrices(tensors):
    """By name: matrices as they are, others as rows of their last extent, and their parts as ``name[k]``."""
    found = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        if tensor.dim() >= 2:
            found[name] = tensor.flatten(0, -2)
        if tensor.dim() == 3:
            found |= {f"{name}[{k}]": part for k, part in enumerate(tensor)}
    return found


def site():
    """VL-PET's site: down, up and the gate's two."""
    return alone(
        [
            ("z", "h", "down_weight.T"),
            ("y", "z", "up_weight.T"),
            ("c", "x", "gate_down_weight.T"),
            ("s", "c", "gate_weight.T"),
        ],
        [
            ("dz", "dy0", "up_weight"),
            ("dup", "dy0.T", "z"),
            ("dh", "dz", "down_weight"),
            ("ddown", "dz.T", "h"),
            ("dc", "s", "gate_weight"),
            ("dgate", "s.T", "c"),
            ("dx", "dc", "gate_down_weight"),
            ("dgate_down", "dc.T", "x"),
        ],
        ["y"],
        lambda t: t["h"].shape,
    )


def cores(rank):
    """All mode vectors with the core as one matrix."""
    return alone(
        [("y", "modes", "core.T")],
        [("dmodes", "dy0", "core"), ("dcore", "dy0.T", "modes")],
        ["y"],
        lambda t: (-1, rank, rank),
    )


def update(modes, projections, dx):
    """PETAL's update of some projections, with the frozen products where the case has them."""
    forward, backward = [("hidden", "x", "u.T")], []
    for k in range(modes):
        if projections:
            forward.append((f"base_{k}", "x", f"weight_{k}.T"))
        forward += [(f"g{k}", "hidden", f"core[{k}]"), (f"y{k}", f"g{k}", "v.T")]
        backward += [
            ("dg", f"dy{k}", "v"),
            ("dv", f"dy{k}.T", f"g{k}"),
            ("dhidden", "dg", f"core[{k}].T"),
            ("dcore", "hidden.T", "dg"),
        ]
        if projections and dx:
            backward.append(("dx", f"dy{k}", f"weight_{k}"))
    backward.append(("du", "dhidden.T", "x"))
    if dx:
        backward.append(("dx", "dhidden", "u"))
    return alone(forward, backward, [f"y{k}" for k in range(modes)], lambda t: (*t["x"].shape[:-1], -1))


def reconstruct(count, full):
    """W + V C Uᵀ of some modules; the backward without making ΔW anew."""
    forward, backward = [], []
    for k in range(count):
        if full:
            forward.append(("left", "v", f"cores[{k}].T"))
        forward.append((f"y{k}", "left" if full else "v", "u"))
        backward += [("dleft", f"dy{k}", "u.T"), ("du", "v.T", f"dy{k}")]
        if full:
            backward += [("dv", "dleft", f"cores[{k}]"), ("dcore", "dleft.T", "v")]
    return alone(forward, backward, [f"y{k}" for k in range(count)])


def mixture(gated):
    """The stacked experts' down and up, and the gate's."""
    forward = [("hidden", "x", "down_weight.T"), ("y", "hidden", "up_weight.T")]
    backward = [
        ("dhidden", "dy0", "up_weight"),
        ("dup", "dy0.T", "hidden"),
        ("ddown", "dhidden.T", "x"),
        ("dx", "dhidden", "down_weight"),
    ]
    if gated:
        forward.append(("gates", "x", "gate_weight.T"))
        backward += [("dgate", "gates.T", "x"), ("dx", "gates", "gate_weight")]
    return alone(forward, backward, ["y"], lambda t: t["x"].shape)
