"""YAML as people mean it: a name stands in a mapping once, and a number is decimal."""

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9]*)",
    "tag:yaml.org,2002:float": r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


class _Loader(yaml.SafeLoader):
    """Without YAML 1.1's octal numbers (010 would be 8), hexadecimal, binary and base-60 ones (1:30 would be 90): those
    are texts. Of a name that stands twice the last would count, in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in getattr(node, "value", ()):
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            if (key.tag, key.value) in seen:
                raise ConstructorError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, words) for tag, words in known if tag not in NUMBERS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _words in NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_words})\\Z"), list("-+.0123456789"))


def load(text: str) -> Any:
    """What the YAML ``text`` holds; yaml.YAMLError, ValueError or RecursionError if it cannot be read."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
