"""YAML as people write it: the scalars of YAML 1.2 on PyYAML's safe loader.

PyYAML follows YAML 1.1, where `label_words: [Yes, No]` and `lanes: on` become booleans and `lr: 1e-6` a
string. Here only true and false are booleans, and 1e-6 is a number. No tag can make an object.
"""

from __future__ import annotations

import re
from typing import Any, final

import yaml

from zotune.errors import ConfigError


@final
class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars of YAML 1.2's core schema, and keys that may not repeat."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # not the inherited 1.1 rules

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # A few lines of aliases to aliases stand for more values than any memory holds.
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "an alias (*name) is not allowed", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} stands twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep=True)


_ENDS = "\x85\u2028\u2029"


@final
class _Dumper(yaml.SafeDumper):
    """The safe dumper that quotes words which YAML 1.1 or 1.2 would read as something else, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("int", r"[-+]?[0-9]+", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", [*"-+0123456789."]),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", [*"-+."]),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML writes these line ends as they are, and then reads them as a space.
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if set(value) & set(_ENDS) else None)


_Dumper.add_representer(str, _text)


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # in YAML 1.2 a leading zero means nothing


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _refuse(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    raise yaml.constructor.ConstructorError(
        None, None, f"could not determine a constructor for {node.tag!r}", node.start_mark
    )


# Only the core schema: what JSON has. The inherited constructors of dates, sets and binaries are not wanted.
_CORE = {f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "map", "null", "seq", "str")}
for _other in [tag for tag in yaml.SafeLoader.yaml_constructors if tag not in _CORE]:
    _Loader.add_constructor(_other, _refuse)
_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def parse_mapping(data: bytes | str, name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping in `data` and the line of each of its keys (from 1). `name` stands in the messages.

    Raises ConfigError for what is not YAML, not a mapping, or wants to make a Python object.
    """
    try:
        loader = _Loader(data)
        try:
            node = loader.get_single_node()
            if node is None or (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
                return {}, {}
            if not isinstance(node, yaml.MappingNode):
                raise ConfigError(f"{name} does not hold `key: value` lines. Remedy: write one option per line.")
            lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
            values = loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, KeyError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise ConfigError(f"{name}{place} is not valid YAML: {problem}. Remedy: correct the file.") from None
    odd = next((key for key in values if not isinstance(key, str)), None)
    if odd is not None or None in values:
        raise ConfigError(f"{name} has the key {odd!r}, which is no word. Remedy: write `option: value`.")
    return values, lines


def parse_scalar(text: str) -> Any:
    """The value of one word from the command line: a number, true, false, null, or the text itself."""
    if any(mark in text for mark in "\n:#[]{},&*!|>'\"%@`"):  # more than a word: taken as it stands
        return text
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError, KeyError, RecursionError):
        return text
    finally:
        loader.dispose()


def dump(values: dict[str, Any]) -> str:
    """`values` as YAML that both this module and a YAML 1.1 reader read with the same values."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
    return text
