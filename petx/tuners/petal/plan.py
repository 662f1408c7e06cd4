"""What one adapter consists of in one model: the towers, their attentions and layers, and what the experts read."""

from dataclasses import dataclass, field

__all__ = ["Group", "Layer", "Plan", "Tower"]


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
    def paths(self) -> tuple[str, ...]:
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
    fused: tuple[str, ...] = ()  # paths of linears that hold query, key and value in one, and stay as they are

    @property
    def key(self) -> str:
        """Name of its parts in an adapter."""
        return self.root.replace(".", "_")


@dataclass
class Plan:
    """Everything that one adapter consists of in one model."""

    towers: dict[str, Tower] = field(default_factory=dict)
    width: int | None = None  # of what the experts read
    mixed: dict[str, str] = field(default_factory=dict)  # path of the module whose output they read -> "qformer", ...

    @property
    def groups(self) -> list[Group]:
        return [group for tower in self.towers.values() for group in tower.groups]

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(path for group in self.groups for path in group.paths)
