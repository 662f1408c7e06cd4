"""Tasks: what is trained on and scored. One module each, with its :class:`TaskSpec` as ``TASK``.

A module may bring a whole kind of data in place of one task, as ``SOURCE``, such as easy-VQA's.
"""

from typing import Any

from petx import _rooms
from petx.errors import UserError
from petx.tasks.base import RunData, Source, TaskSpec

__all__ = ["RunData", "Source", "TaskSpec", "find", "kinds", "names", "of_kind", "only_ranks", "retrieval", "source"]


def of_kind(kind: str, method: str) -> dict[str, TaskSpec]:
    """``{name: task}`` of the tasks of a kind of data that the recipe ``method`` can train on."""
    found = [module.TASK for module in _rooms.modules(__name__).values() if hasattr(module, "TASK")]
    return {task.name: task for task in found if task.data == kind and method in task.methods}


def find(name: str) -> TaskSpec:
    """The task called ``name``, of any method; UserError if there is none."""
    known = {m.TASK.name: m.TASK for m in _rooms.modules(__name__).values() if hasattr(m, "TASK")}
    if name not in known:
        raise UserError(f"unknown task {name!r}; there are: {', '.join(sorted(known))}")
    return known[name]


def kinds(method: str) -> tuple[str, ...]:
    """What ``--data`` can be for the recipe ``method``."""
    modules = _rooms.modules(__name__).values()
    sources = [module.SOURCE.kind for module in modules if hasattr(module, "SOURCE")]
    own = {module.TASK.data for module in modules if hasattr(module, "TASK") and method in module.TASK.methods}
    return (*sources, *sorted(own))


def names(settings: Any) -> tuple[str, ...]:
    """The tasks of the kind of data in ``settings`` that its recipe trains on, as settings name them."""
    found = source(settings.data)
    return found.own_tasks or tuple(found.specs(settings))


def retrieval(settings: Any) -> list[str]:
    """The tasks of ``settings``, which :meth:`Source.check` has seen, that rank images and captions."""
    found = source(settings.data)
    known = found.specs(settings)
    return [*found.retrieval, *(name for name in settings.tasks if name in known and known[name].retrieval)]


def only_ranks(settings: Any) -> bool:
    """Whether all tasks of ``settings`` are of :func:`retrieval`, so that nothing is asked and no text generated."""
    ranked = retrieval(settings)
    return bool(ranked) and set(settings.tasks) <= set(ranked)


def source(kind: str) -> Source:
    """What ``--data`` names."""
    from petx.tasks._own_data import OwnData

    for module in _rooms.modules(__name__).values():
        if hasattr(module, "SOURCE") and module.SOURCE.kind == kind:
            return module.SOURCE
    return OwnData(kind)
