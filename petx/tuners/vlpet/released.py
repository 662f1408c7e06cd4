"""VL-PET's published checkpoints: what the released code calls the tensors of a tuned BART, and what petx does.

A checkpoint is the ``state_dict`` of the whole model. Names in it, N a layer, i a head, TASK each task's name:

====================================================================================  ==================================
``model.encoder.layers.N.{attn,ff}_adapter_multihead_{down,up}[.i]``                    ΔH, its heads one by one
``model.encoder.layers.N.encoder_{attn,ff}_adapter_gating_large_x_{down,up}``           gate, level large
``model.encoder.layers.N.encoder_{attn,ff}_adapter_gating_middle_xy_add``               middleX
``model.encoder.layers.N.encoder_{attn,ff}_adapter_gating_middle_ia3_add``              middleY, a vector
``model.encoder.layers.N.encoder_{attn,ff}_adapter_gating_small_xy_cat``                small
``model.decoder.layers.N.encoder_attn.attn_value_parallel_adapter.adapters.TASK.…``     value adapter, one for all tasks
``model.encoder.visual_embedding.…``                                                    visual embedding
====================================================================================  ==================================
"""

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor

from petx.errors import UserError

__all__ = ["COPIES", "SHARED", "Released", "read_released"]

SHARED = "model.shared.weight"
COPIES = (  # of the embedding, by the names that share it
    *("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"),
    "model.encoder.visual_embedding.obj_order_embedding.weight",
)
VISUAL = {
    "feat_embedding.0": "feature",
    "feat_embedding.1": "feature_norm",
    "absolute_vis_pos_embedding.0": "position",
    "absolute_vis_pos_embedding.1": "position_norm",
    "img_order_embedding": "image_order",
}
PLACES = {"attn": "self_attn.out_proj", "ff": "fc2"}
GATES = {  # of the released name: level and name here
    "large_x_down": ("large", "gate_down"),
    "large_x_up": ("large", "gate"),
    "middle_xy_add": ("middleX", "gate"),
    "middle_ia3_add": ("middleY", "gate_scale"),
    "small_xy_cat": ("small", "gate"),
}
_VISUAL = re.compile(r"model\.encoder\.visual_embedding\.(.+)\.(weight|bias)")
_DELTA = re.compile(r"(model\.encoder\.layers\.\d+)\.(attn|ff)_adapter_multihead_(down|up)(?:\.(\d+))?\.(weight|bias)")
_GATE = re.compile(r"(model\.encoder\.layers\.\d+)\.encoder_(attn|ff)_adapter_gating_(\w+)((?:\.(?:weight|bias))?)")
_VALUE = re.compile(
    r"(model\.decoder\.layers\.\d+\.encoder_attn)\.attn_value_parallel_adapter\.adapters\.\w+\."
    r"(down|up)_sampler\.(weight|bias)"
)


@dataclasses.dataclass
class Released:
    """A checkpoint under petx's names.

    Attributes:
        options: fields of :class:`petx.tuners.VLPetConfig` that follow from names and shapes.
        host: tensors of :class:`petx.models.VLBartForConditionalGeneration`, those trained in place included.
        adapter: tensors of the adapters, named as in that model, ``….vlpet_adapter.down.weight``.
        names: ``{released name: name here}`` of every tensor.
    """

    options: dict[str, Any]
    host: dict[str, Tensor]
    adapter: dict[str, Tensor]
    names: dict[str, str]


def read_released(state: Any, file: str) -> Released:
    """The checkpoint ``state``, a ``state_dict`` under the released names, read from ``file``.

    Raises UserError naming a tensor that is not finite, is no copy of what it should be, or misses its other half.
    """
    if not isinstance(state, dict):
        raise UserError(f"{file} must hold a state_dict, names with tensors; got {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{file} must hold a state_dict, names with tensors; at {name!r} is {_words(tensor)}")
    if state and all(name.startswith("module.") for name in state):  # saved from torch's DDP
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if SHARED not in state:
        raise UserError(f"{file} holds no BART tuned by VL-PET's released code: {SHARED} is missing")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or not tensor.is_floating_point() or not tensor.dim():
            raise UserError(f"{file}: {name} must be a dense tensor of real numbers, got {_words(tensor)}")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{file}: {name} has values that are not finite")
    found = Released({}, {}, {}, {})
    heads: dict[str, dict[int, Tensor]] = {}  # parts of one tensor, by their place
    levels: set[str] = set()
    for name, tensor in state.items():
        if name in COPIES:
            _same(file, name, tensor, SHARED, state[SHARED])
            found.names[name] = SHARED
        elif match := _VISUAL.fullmatch(name):
            if match[1] not in VISUAL:
                raise UserError(f"{file}: {name} is of no use here; a visual embedding has {', '.join(VISUAL)}")
            found.names[name] = f"visual_embedding.{VISUAL[match[1]]}.{match[2]}"
            found.host[found.names[name]] = tensor
        elif match := _DELTA.fullmatch(name):
            found.names[name] = f"{match[1]}.{PLACES[match[2]]}.vlpet_adapter.{match[3]}.{match[5]}"
            heads.setdefault(found.names[name], {})[-1 if match[4] is None else int(match[4])] = tensor
        elif (match := _GATE.fullmatch(name)) and match[3] in GATES:
            level, here = GATES[match[3]]
            levels.add(level)
            found.names[name] = f"{match[1]}.{PLACES[match[2]]}.vlpet_adapter.{here}{match[4]}"
            found.adapter[found.names[name]] = tensor
        elif match := _VALUE.fullmatch(name):
            here = f"{match[1]}.v_proj.vlpet_adapter.{match[2]}.{match[3]}"
            found.names[name] = here
            _same(file, name, tensor, "another task's", found.adapter.setdefault(here, tensor))
        else:
            found.names[name] = name
            found.host[name] = tensor
    if len(levels) > 1:
        raise UserError(f"{file} has gates of several levels, {', '.join(sorted(levels))}; wanted one")
    for here, parts in heads.items():
        found.adapter[here] = _stacked(file, here, parts)
    found.options = _options(file, found, heads) | {"granularity": levels.pop() if levels else "none"}
    return found


def _words(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{'quantised ' * value.is_quantized}{value.dtype} {list(value.shape)}, {value.layout}"


def _same(file: str, name: str, tensor: Tensor, other: str, wanted: Tensor) -> None:
    if not torch.equal(tensor, wanted):
        raise UserError(f"{file}: {name} differs from {other}, of which it is a copy where the weights are shared")


def _stacked(file: str, here: str, parts: dict[int, Tensor]) -> Tensor:
    """The heads of one tensor, one below the other; the tensor itself if it has none."""
    if -1 in parts and len(parts) > 1:
        raise UserError(f"{file} has {here} whole and by heads, of which it wants one")
    if set(parts) not in ({-1}, set(range(len(parts)))):
        missing = next(i for i in range(max(parts) + 1) if i not in parts)
        raise UserError(f"{file}: head {missing} of {here} is missing; there are {sorted(parts)}")
    try:
        return torch.cat([parts[i] for i in sorted(parts)])
    except RuntimeError as error:
        shapes = ", ".join(str(list(parts[i].shape)) for i in sorted(parts))
        raise UserError(f"{file}: the heads of {here} are {shapes}, which do not fit together") from error


def _options(file: str, found: Released, heads: dict[str, dict[int, Tensor]]) -> dict[str, Any]:
    """Design, heads and ranks, by one encoder layer and one decoder layer; the others are held to them later."""

    def first(end: str) -> str:
        name = next((name for name in found.adapter if name.endswith(end)), None)
        if name is None:
            raise UserError(f"{file} holds no tensor for {end.removeprefix('.')}: it was tuned by another method")
        return name

    down, up = (first(f".fc2.vlpet_adapter.{which}.weight") for which in ("down", "up"))
    rank, several = len(found.adapter[down]), [which for which in (down, up) if -1 not in heads[which]]
    design = {(down,): "down", (up,): "up", (down, up): "down-up", (): "down"}[tuple(several)]
    count = len(heads[several[0]]) if several else 1
    if design == "down-up" and count > 1 and found.adapter[up].shape[1] * count == rank:
        design = "down-up-pair"
    value = found.adapter[first(".v_proj.vlpet_adapter.down.weight")]
    gate = next((t for name, t in found.adapter.items() if name.endswith(".gate_down.weight")), None)
    sizes = dict(rank=rank, heads=count, decoder_rank=len(value), gate_rank=rank if gate is None else len(gate))
    return {"design": design, **sizes}
