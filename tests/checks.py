"""How results are compared, in every test of an operation: by the rule that a card is certified with, too."""

from torch.utils._python_dispatch import TorchDispatchMode

from petx.certify.rule import exact, outputs, outputs_and_grads, relative, weights_of, wrong

__all__ = ["Recorder", "exact", "outputs", "outputs_and_grads", "relative", "weights_of", "wrong"]


class Recorder(TorchDispatchMode):
    """Keeps the arguments of every call of a petx operator."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "petx":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))
