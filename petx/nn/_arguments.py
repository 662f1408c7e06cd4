"""What the checks of the layers share."""


def checked_size(layer, **sizes):
    """Raise ValueError unless every size is a positive integer."""
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{layer}: {name} must be a positive integer, got {value!r}")


def checked_option(layer, name, value, known):
    if value not in known:
        raise ValueError(f"{layer}: {name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def checked_probability(layer, **values):
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{layer}: {name} must be in [0, 1), got {value}")


def parameters_of(module, *names):
    """Read from where a module keeps them, which is ten times as fast as its attributes; what is elsewhere (a
    parametrisation, a replica) is asked for by attribute."""
    held = module._parameters
    try:
        return [held[name] for name in names]
    except KeyError:
        return [getattr(module, name) for name in names]


def weight_and_bias(layer):
    """Of a linear layer or None, in the same way."""
    if layer is None:
        return None, None
    held = layer._parameters
    if "weight" in held and "bias" in held:
        return held["weight"], held["bias"]
    return layer.weight, layer.bias
