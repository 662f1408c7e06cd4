"""Where PETAL goes in a given model: found and checked before anything is changed."""

import re
from dataclasses import dataclass, field

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from petx.errors import UserError

__all__ = ["Group", "Layer", "Plan", "Tower", "find_places"]

# Names of an attention's projections of its input, in the order query, key, value.
PROJECTIONS = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q", "k", "v"))
CROSS = re.compile(r"cross|encdec|encoder_attn", re.IGNORECASE)
NUMBER = re.compile(r"\.(\d+)(?=\.|$)")


@dataclass(frozen=True)
class Group:
    """Projections that one attention applies to one input, with the factors they use."""

    attention: str  # path
    names: tuple[str, ...]  # of the linears in it
    kind: str  # in words: "self-attention", ...
    factors: str  # name of their factors
    in_features: int
    out_features: int
    several_read_input: bool = False  # other groups project the same input by the same U

    @property
    def paths(self):
        return tuple(f"{self.attention}.{name}" for name in self.names)


@dataclass(frozen=True)
class Layer:
    """A layer whose output gets a residual of its self-attention's output: whose, and where it is added."""

    path: str
    attention: str  # its self-attention block; its output is A [B, L, d]
    tails: tuple[str, ...]  # modules whose outputs are, side by side in tokens, the layer's output or a summand of it
    query_tail: str | None  # the one of them for query tokens; its second argument entered the feed-forward
    cross: str | None  # cross-attention block
    width: int


@dataclass(frozen=True)
class Tower:
    name: str
    root: str  # path
    kind: str  # "qformer" or "transformer"
    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]

    @property
    def key(self):
        """Name of its parts in an adapter."""
        return self.root.replace(".", "_")


@dataclass
class Plan:
    """Everything that one adapter consists of in one model."""

    towers: dict[str, Tower] = field(default_factory=dict)
    width: int | None = None  # of what the experts read
    mixed: dict[str, str] = field(default_factory=dict)  # path of the module whose output they read -> "qformer", ...

    @property
    def groups(self):
        return [group for tower in self.towers.values() for group in tower.groups]

    @property
    def paths(self):
        return tuple(path for group in self.groups for path in group.paths)


def find_places(model, config):
    """:class:`Plan` of ``config`` (resolved) in ``model``.

    Raises UserError where a tower does not exist or has no attention that can be adapted, or a part that ``config``
    asks for has no place in the model.
    """
    modules = {
        path: module
        for path, module in model.named_modules()
        if not re.search(r"(^|\.)(original_module|modules_to_save|petal_\w+|base_layer)(\.|$)", path)
    }
    plan = Plan()
    for name in config.towers:
        root = _root(model, modules, name)
        plan.towers[name] = _tower(name, root, modules, _layers_read(model, root, modules))
    _check_parts(plan, config)
    if config.experts:
        _place_experts(model, modules, plan, config)
    for path in (*plan.paths, *plan.mixed):
        parts = path.split(".")
        for i in range(1, len(parts) + 1):
            if isinstance(modules[".".join(parts[:i])], AuxiliaryTrainingWrapper) or _covered(
                ".".join(parts[:i]), config.modules_to_save or ()
            ):
                raise UserError(
                    f"PETAL: {path} is adapted and belongs to modules_to_save; what is trained whole cannot be adapted"
                )
    return plan


def _covered(path, chosen):
    return any(path == name or path.endswith(f".{name}") for name in chosen)


def base_of(module):
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


# ---- towers ----


def _root(model, modules, name):
    found = [path for path in modules if path == name or path.endswith(f".{name}")]
    found = [path for path in found if not any(path.startswith(f"{other}.") for other in found)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"PETAL: the tower {name!r} could be {' or '.join(found)}; give the whole path in towers")
    raise UserError(f"PETAL: {type(model).__name__} has no tower {name!r}; {_what_there_is(modules)}")


def _what_there_is(modules):
    holders = {}
    for path in modules:
        if _projections(path, modules):
            holders.setdefault(NUMBER.split(path)[0].removesuffix(".layer").removesuffix(".encoder"), None)
    if not holders:
        return "nothing in it has query, key and value linear layers"
    return f"query, key and value linear layers are in {', '.join(holders)}"


def _projections(path, modules):
    """Names of the query, key and value linears directly under ``path``, or None."""
    for names in PROJECTIONS:
        linears = [base_of(modules.get(f"{path}.{name}")) for name in names]
        if all(isinstance(linear, nn.Module) and hasattr(linear, "out_features") for linear in linears):
            return names
    return None


def _layers_read(model, root, modules):
    """How many layers of a LLaVA's image encoder its projector gets to see; None for all. The others never train."""
    chosen = getattr(getattr(model, "config", None), "vision_feature_layer", None)
    if chosen is None or root.rpartition(".")[2] not in ("vision_tower", "vision_model"):
        return None
    layers = {int(m[1]) for path in modules if path.startswith(root) and (m := re.search(r"\.layers\.(\d+)$", path))}
    states = len(layers) + 1  # hidden states: what enters the first layer, and every layer's output
    return max(
        number if number >= 0 else states + number for number in ([chosen] if isinstance(chosen, int) else chosen)
    )


def _is_read(path, number):
    found = re.search(r"\.layers\.(\d+)(\.|$)", path)
    return number is None or found is None or int(found[1]) < number


def _tower(name, root, modules, read=None):
    inside = [path for path in modules if path == root or path.startswith(f"{root}.")]
    inside = [path for path in inside if _is_read(path, read)]
    attentions = {path: names for path in inside if (names := _projections(path, modules))}
    if not attentions:
        fused = sorted(
            {path.rpartition(".")[2] for path in inside if re.search(r"(^|\.)(qkv|c_attn|in_proj)\w*$", path)}
        )
        why = f" (its projections are in one: {', '.join(fused)})" if fused else ""
        raise UserError(f"PETAL: no attention in {root} has query, key and value linear layers of its own{why}")
    qformer = any(path.endswith(".output_query") for path in inside)
    groups = []
    for path, names in attentions.items():
        groups += _groups(root.replace(".", "_"), path, names, modules, qformer)
    layers = _qformer_layers(root, modules) if qformer else _transformer_layers(attentions, modules)
    return Tower(name, root, "qformer" if qformer else "transformer", tuple(groups), tuple(layers))


def _is_cross(attention):
    return bool(CROSS.search(".".join(attention.split(".")[-2:])))


def _groups(tower, path, names, modules, qformer):
    sizes = {}
    for name in names:
        linear = base_of(modules[f"{path}.{name}"])
        sizes[name] = (linear.in_features, linear.out_features)
    query, key, value = names
    cross = _is_cross(path)
    text, image = ("text", "image") if qformer else (tower, f"{tower}_cross")
    kind = "cross-attention" if cross else "self-attention"
    if cross:
        # Key and value read what every cross-attention reads: its projection is shared by all of them.
        return [
            Group(path, (query,), f"{kind} query", text, *sizes[query]),
            Group(path, (key, value), f"{kind} key and value", image, *sizes[key], True),
        ]
    if len(set(sizes.values())) == 1:
        return [Group(path, names, f"{kind} query, key and value", text, *sizes[query])]
    if sizes[key] != sizes[value] or sizes[key][0] != sizes[query][0]:
        raise UserError(f"PETAL: {path} has projections of different shapes that share no factors: {sizes}")
    return [  # grouped-query attention: fewer heads for key and value
        Group(path, (query,), f"{kind} query", text, *sizes[query], True),
        Group(path, (key, value), f"{kind} key and value", text, *sizes[key], True),
    ]


def _qformer_layers(root, modules):
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
                modules[f"{path}.dense"].out_features,
            )
        )
    return found


def _transformer_layers(attentions, modules):
    """Layers with a self-attention and a child ``mlp``, which in a pre-norm layer returns the last summand."""
    found = []
    for path in attentions:
        layer = path.rpartition(".")[0]
        if f"{layer}.mlp" in modules and not _is_cross(path):
            found.append(Layer(layer, path, (f"{layer}.mlp",), None, None, _width(path, modules)))
    return found


def _width(attention, modules):
    for out in ("o_proj", "out_proj", "dense"):
        if f"{attention}.{out}" in modules:
            return base_of(modules[f"{attention}.{out}"]).out_features
    names = _projections(attention, modules)
    return base_of(modules[f"{attention}.{names[0]}"]).in_features


# ---- the other parts ----


def _check_parts(plan, config):
    for tower in plan.towers.values():
        if config.query_transform and not tower.layers:
            raise UserError(
                f"PETAL: {tower.root} has no layers of a self-attention and an `mlp`, which query_transform needs; "
                "set query_transform=False"
            )
        for name, wanted in (("cross_query_transform", config.cross_query_transform), ("context", config.context)):
            if wanted not in (False, "off") and tower.kind != "qformer":
                raise UserError(f"PETAL: {name}={wanted!r} needs query tokens, and {tower.root} is no Q-Former")


def _place_experts(model, modules, plan, config):
    qformer = next((tower for tower in plan.towers.values() if tower.kind == "qformer"), None)
    if qformer is not None:
        embedded = f"{qformer.root}.embeddings"
        place = embedded if embedded in modules else f"{qformer.root}.dropout"
        if place not in modules or config.expert_scope == "image":
            why = "expert_scope='image' is for models without a Q-Former" if place in modules else "no embeddings found"
            raise UserError(f"PETAL: the experts have no place in {qformer.root}: {why}")
        if config.expert_scope == "text" and not _reads_text(model, embedded in modules):
            raise UserError(
                f"PETAL: with expert_scope='text' the experts would never train, since {qformer.root} reads no text; "
                "use expert_scope='all' or experts=0"
            )
        plan.mixed, plan.width = {place: "qformer"}, qformer.layers[0].width
        return
    projectors = [path for path in modules if path.rpartition(".")[2] == "multi_modal_projector"]
    words = next((p for p, m in modules.items() if m is model.get_input_embeddings()), None) if projectors else None
    if not projectors or words is None:
        raise UserError(
            f"PETAL: experts read the embeddings of a Q-Former, or a projector's output and the word embeddings; "
            f"{type(model).__name__} with towers={list(plan.towers)} has neither; set experts=0"
        )
    if config.expert_gate == "sample" and config.expert_scope != "image":
        raise UserError(
            "PETAL: expert_gate='sample' averages over a sample's tokens, and in a decoder these are the answer's too; "
            "use expert_scope='image' or expert_gate='token'"
        )
    plan.width = modules[words].weight.shape[1]
    if config.expert_scope in ("all", "image"):
        plan.mixed[projectors[0]] = "image"
    if config.expert_scope in ("all", "text"):
        plan.mixed[words] = "text"


def _reads_text(model, has_embeddings):
    settings = getattr(getattr(model, "config", None), "qformer_config", None)
    return bool(getattr(settings, "use_qformer_text_input", has_embeddings))
