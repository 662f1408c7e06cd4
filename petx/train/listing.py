"""What ``petx train METHOD --list`` shows: data, tasks, metrics, baselines, hosts and presets, a line each."""

from petx import _rooms, baselines, hosts, metrics, tasks
from petx.train.settings import Common, preset_line, presets


def listing(kind: type[Common]) -> str:
    """All that a recipe with settings of ``kind`` can use."""
    method = kind.recipe
    sections = {}
    for data in tasks.kinds(method):
        specs = tasks.of_kind(data, method)
        source = {data: _rooms.first_line(type(tasks.source(data)))}
        sections[f"tasks (--data {data})"] = {name: spec.title for name, spec in specs.items()} or source
    scores = _rooms.modules(metrics.__name__)
    sections["metrics"] = {name: _rooms.first_line(scores[name]) for name in metrics.names()}
    offered = baselines.of_method(method)
    sections["baselines (--arms, --with)"] = {name: _rooms.first_line(one) for name, one in offered.items()}
    sections["hosts (--host FOLDER)"] = {n: _rooms.first_line(one) for n, one in hosts.of_method(method).items()}
    sections["presets (--preset)"] = {name: preset_line(kind, name) for name in presets(kind)}
    width = max(len(name) for section in sections.values() for name in section)
    text = []
    for title, section in sections.items():
        text += ["", title, *(f"  {name:<{width}}  {line}" for name, line in section.items())]
    return "\n".join(text[1:])
