"""Attentions and layers of a tower, found by the names of their modules."""

import re
from collections.abc import Iterable

from torch import nn

from petx.errors import UserError
from petx.tuners._common.paths import base_of
from petx.tuners.petal.plan import Group, Layer, Tower

__all__ = ["Modules", "find_root", "find_tower", "layers_read"]

Modules = dict[str, nn.Module]  # by path

# Names of an attention's projections of its input, in the order query, key, value.
PROJECTIONS = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q", "k", "v"))
OUTPUTS = ("o_proj", "out_proj", "dense")  # of an attention
FUSED = re.compile(r"qkv|query_key_value|c_attn|att_proj|^in_proj$|^kv_a_proj|^kv_b_proj", re.IGNORECASE)
FEED_FORWARD = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
# Norms between a feed-forward and the residual sum, as in Gemma 2 and later: what they return is the last summand.
AFTER_FEED_FORWARD = ("post_feedforward_layernorm", "post_mlp_layernorm")
CROSS = re.compile(r"cross|encdec|encoder_attn", re.IGNORECASE)
NUMBER = re.compile(r"\.(\d+)(?=\.|$)")


def find_root(model: nn.Module, modules: Modules, name: str) -> str:
    """Path of the tower called ``name``; UserError if there is none, or more than one."""
    found = [path for path in modules if path == name or path.endswith(f".{name}")]
    found = [path for path in found if not any(path.startswith(f"{other}.") for other in found)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"PETAL: the tower {name!r} could be {' or '.join(found)}; give the whole path in towers")
    raise UserError(f"PETAL: {type(model).__name__} has no tower {name!r}; {_what_there_is(modules)}")


def _what_there_is(modules: Modules) -> str:
    holders: dict[str, None] = {}
    for path in modules:
        if _projections(path, modules):
            holders.setdefault(NUMBER.split(path)[0].removesuffix(".layer").removesuffix(".encoder"), None)
    if not holders:
        return "nothing in it has query, key and value linear layers"
    return f"query, key and value linear layers are in {', '.join(holders)}"


def _projections(path: str, modules: Modules) -> tuple[str, ...] | None:
    """Names of the query, key and value linears directly under ``path``, or None.

    Key and value, or the value alone, may be missing if the attention projects its input by nothing else: some layers
    of Gemma 4 read another layer's keys and values, or take the keys for values.
    """
    for names in PROJECTIONS:
        there = tuple(name for name in names if _is_linear(modules.get(f"{path}.{name}")))
        if there == names:
            return names
        if there and there == names[: len(there)] and _linears(path, modules) <= {*there, *OUTPUTS}:
            if any(f"{path}.{out}" in modules for out in OUTPUTS):
                return there
    return None


def _is_linear(module: nn.Module | None) -> bool:
    linear = base_of(module)
    return isinstance(linear, nn.Module) and hasattr(linear, "out_features")


def _linears(path: str, modules: Modules) -> set[str]:
    """Names of the linears directly under ``path``."""
    return {name for name, child in modules[path].named_children() if _is_linear(modules.get(f"{path}.{name}", child))}


def _fused(inside: list[str], modules: Modules) -> list[str]:
    """Paths of the linears that hold more than one of query, key and value, as far as their names tell."""
    return [path for path in inside if FUSED.search(path.rpartition(".")[2]) and _is_linear(modules[path])]


def layers_read(model: nn.Module, root: str, modules: Modules) -> int | None:
    """How many layers of a LLaVA's image encoder its projector gets to see; None for all. The others never train."""
    chosen = getattr(getattr(model, "config", None), "vision_feature_layer", None)
    if chosen is None or root.rpartition(".")[2] not in ("vision_tower", "vision_model"):
        return None
    layers = {int(m[1]) for path in modules if path.startswith(root) and (m := re.search(r"\.layers\.(\d+)$", path))}
    states = len(layers) + 1  # hidden states: what enters the first layer, and every layer's output
    return max(
        number if number >= 0 else states + number for number in ([chosen] if isinstance(chosen, int) else chosen)
    )


def _is_read(path: str, number: int | None) -> bool:
    found = re.search(r"\.layers\.(\d+)(\.|$)", path)
    return number is None or found is None or int(found[1]) < number


def find_tower(name: str, root: str, modules: Modules, read: int | None = None) -> Tower:
    """The tower at ``root``, up to its layer ``read``; UserError if it has no attention that can be adapted."""
    inside = [path for path in modules if path == root or path.startswith(f"{root}.")]
    inside = [path for path in inside if _is_read(path, read)]
    attentions = {path: names for path in inside if (names := _projections(path, modules))}
    if not attentions:
        fused = sorted({path.rpartition(".")[2] for path in _fused(inside, modules)})
        why = f" (its projections are in one: {', '.join(fused)})" if fused else ""
        raise UserError(f"PETAL: no attention in {root} has query, key and value linear layers of its own{why}")
    qformer = any(path.endswith(".output_query") for path in inside)
    groups = []
    for path, names in attentions.items():
        groups += _groups(root.replace(".", "_"), path, names, modules, qformer)
    layers = _qformer_layers(root, modules) if qformer else _transformer_layers(attentions, modules)
    kind = "qformer" if qformer else "transformer"
    return Tower(name, root, kind, tuple(groups), tuple(layers), tuple(_fused(inside, modules)))


def _is_cross(attention: str) -> bool:
    return bool(CROSS.search(".".join(attention.split(".")[-2:])))


def _groups(tower: str, path: str, names: tuple[str, ...], modules: Modules, qformer: bool) -> list[Group]:
    sizes = {}
    for name in names:
        linear = base_of(modules[f"{path}.{name}"])
        sizes[name] = (linear.in_features, linear.out_features)
    query, *others = names
    cross = _is_cross(path)
    text, image = ("text", "image") if qformer else (tower, f"{tower}_cross")
    kind = "cross-attention" if cross else "self-attention"
    rest = " and ".join(("key", "value")[: len(others)])
    if cross and others:
        # Key and value read what every cross-attention reads: its projection is shared by all of them.
        return [
            Group(path, (query,), f"{kind} query", text, *sizes[query]),
            Group(path, tuple(others), f"{kind} {rest}", image, *sizes[others[0]], True),
        ]
    if len(set(sizes.values())) == 1:
        joint = ", " if len(others) == 2 else " and " if others else ""
        return [Group(path, names, f"{kind} query{joint}{rest}", text, *sizes[query])]
    if len({sizes[name] for name in others}) > 1 or sizes[others[0]][0] != sizes[query][0]:
        raise UserError(f"PETAL: {path} has projections of different shapes that share no factors: {sizes}")
    return [  # grouped-query attention: fewer heads for key and value
        Group(path, (query,), f"{kind} query", text, *sizes[query], True),
        Group(path, tuple(others), f"{kind} {rest}", text, *sizes[others[0]], True),
    ]


def _qformer_layers(root: str, modules: Modules) -> list[Layer]:
    found = []
    for path in modules:
        if not path.startswith(f"{root}.") or not path.endswith(".output_query"):
            continue
        layer = path.removesuffix(".output_query")
        text = f"{layer}.output"
        cross = f"{layer}.crossattention"
        found.append(
            Layer(
                layer,
                f"{layer}.attention",
                (path, text) if text in modules else (path,),
                path,
                cross if cross in modules else None,
                base_of(modules[f"{path}.dense"]).out_features,
            )
        )
    return found


def _transformer_layers(attentions: Iterable[str], modules: Modules) -> list[Layer]:
    """Layers with a self-attention and a feed-forward, whose last summand, in a pre-norm layer, is what that returns,
    or the norm behind it."""
    found = []
    for path in attentions:
        layer = path.rpartition(".")[0]
        last = [f"{layer}.{name}" for name in (*AFTER_FEED_FORWARD, *FEED_FORWARD) if f"{layer}.{name}" in modules]
        if any(f"{layer}.{name}" in modules for name in FEED_FORWARD) and not _is_cross(path):
            found.append(Layer(layer, path, (last[0],), None, None, _width(path, modules)))
    return found


def _width(attention: str, modules: Modules) -> int:
    for out in OUTPUTS:
        if f"{attention}.{out}" in modules:
            return base_of(modules[f"{attention}.{out}"]).out_features
    names = _projections(attention, modules)
    assert names is not None  # of a path that has them
    return base_of(modules[f"{attention}.{names[0]}"]).in_features
