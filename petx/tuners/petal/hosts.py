"""What PETAL adapts if nothing is said, found in the model itself by rules that hold for every kind.

- The tower is the Q-Former if there is one, else the language model: what ``get_decoder()`` of transformers gives.
- Experts read the module that brings images into it, known by its name (``multi_modal_projector``, ``connector``,
  ``merger``, ...) and by a weight of the language model's width.

Attentions, layers and what is in them are then found by the names of their modules (towers.py, places.py).
"""

import re
from typing import Any

from torch import nn

from petx.errors import UserError
from petx.tuners._common.language_model import language_model
from petx.tuners._common.paths import parents

__all__ = ["default_towers", "find_projector"]

QFORMER = "qformer"
PROJECTOR = re.compile(
    r"(projector|projection|connector|merger|resampler|aligner|abstractor|embed_vision|vision_embedder)$"
)


def default_towers(model: nn.Module, modules: dict[str, nn.Module]) -> list[str]:
    """Names of the parts of ``model`` to adapt; ``modules``: plain path -> module.

    Raises UserError, with what to do, if it has no Q-Former and no language model that images are brought into.
    """
    if any(path.rpartition(".")[2] == QFORMER for path in modules):
        return [QFORMER]
    kind, config = type(model).__name__, getattr(model, "config", None)
    root = language_model(model)
    if getattr(config, "is_encoder_decoder", False):
        why = "it is an encoder-decoder without a Q-Former"
    elif root is None:
        why = "no language model was found in it by get_decoder()"
    elif not projectors(model, modules, root):
        why = f"nothing in it looks as if it brought images into {root} (a projector, connector or merger)"
    else:
        name = root.rpartition(".")[2]
        alike = [path for path in modules if path == name or path.endswith(f".{name}")]
        return [name if alike == [root] else root]
    raise UserError(
        f"PETAL: towers has a default for models with a Q-Former, and with a decoder-only language model behind a "
        f"projector of images; {kind} has none: {why}. Name the parts of this model that are to be adapted in towers, "
        "and with projector the module whose output the experts read (or set experts=0)"
    )


def projectors(model: Any, modules: dict[str, nn.Module], root: str) -> list[str]:
    """Paths of the modules that look as if they brought images into the language model at ``root``, outermost only.

    Those in a numbered list are left out: they serve single layers (Qwen3-VL's deepstack).
    """
    width = model.get_input_embeddings().weight.shape[1]
    named = [path for path in modules if PROJECTOR.search(path.rpartition(".")[2])]
    named = [path for path in named if path != root and not path.startswith(f"{root}.")]
    named = [path for path in named if not any(part.isdigit() for part in path.split("."))]
    fitting = [path for path in named if _touches(modules[path], width)]
    return [path for path in fitting if not any(above in fitting for above in parents(path))]


def _touches(module: nn.Module, width: int) -> bool:
    """Whether a weight in ``module`` is of ``width``, or a linear is whose weight is packed (4 bit) and shows none."""
    named = [(f".{name}", parameter) for name, parameter in module.named_parameters()]
    if any(p.dim() == 2 and width in p.shape and ".petal_" not in name for name, p in named):
        return True
    return any(
        width in (part.in_features, part.out_features) for part in module.modules() if isinstance(part, nn.Linear)
    )


def find_projector(model: Any, modules: dict[str, nn.Module], root: str, given: str | None) -> str:
    """Path of the module whose output experts read as the image's: the one called ``given``, or what is found."""
    if given is not None:
        found = [path for path in modules if path == given or path.endswith(f".{given}")]
        if len(found) == 1:
            return found[0]
        why = f"could be {' or '.join(found)}; give the whole path" if found else "is not in the model"
        raise UserError(f"PETAL: projector {given!r} {why}")
    found = projectors(model, modules, root)
    if len(found) == 1:
        return found[0]
    which = f"there are {', '.join(found)}" if found else "none was found by its name and width"
    raise UserError(
        f"PETAL: experts read the embeddings of a Q-Former, or a projector's output and the word embeddings; in "
        f"{type(model).__name__}, {which}: name it in projector, or set experts=0"
    )
