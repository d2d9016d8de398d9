"""YAML read into a tree in which every value knows its file and line."""

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from pela_vl.base.errors import UserError, expand_home


@dataclass(frozen=True)
class Node:
    """A value (dict[str, Node], list[Node] or a scalar) and its place ("file:line", or "--set a.b")."""

    value: Any
    place: str


def read_file(path: str) -> Node:
    """Read one YAML file whose top is a mapping; an empty file is an empty mapping. Raises `UserError`."""
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read config {path}: {error.strerror}") from error
    data = _parse(text, path)
    if data is None:
        return Node({}, path)
    if not isinstance(data, dict):
        got = "a list" if isinstance(data, list) else repr(data)
        raise UserError(f"{path}: a config is a mapping of 'key: value' lines, got {got}")
    node = _placed(data, path, 1)
    return Node(node.value, path)


def read_with_bases(path: str, prepare: Callable[[Node], Node] = lambda node: node) -> Node:
    """Read a file and the files that it names by `base: other.yaml` (relative to the file itself).

    Mappings merge key by key; a list or a single value of the file replaces the base's. `prepare` is applied to the
    tree of each file before they are merged.

    Raises:
        UserError: If files name one another in a cycle, or cannot be read.
    """
    layers: list[Node] = []
    chain: list[str] = []
    seen: set[str] = set()
    place = ""
    while True:
        real = os.path.realpath(path)
        chain.append(path)
        if real in seen:
            raise UserError(f"{place}: 'base' goes round in a circle: {' -> '.join(chain)}")
        seen.add(real)
        if place and not os.path.isfile(path):
            raise UserError(f"{place}: base file {path} is absent; 'base' is relative to the file that names it")
        node = read_file(path)
        base = node.value.pop("base", None)
        layers.append(prepare(node))
        if base is None:
            break
        if not isinstance(base.value, str) or not base.value:
            raise UserError(f"{base.place}: key 'base' wants the name of one YAML file, got {base.value!r}")
        place = base.place
        path = os.path.normpath(os.path.join(os.path.dirname(path), expand_home(base.value)))
    tree = layers.pop()
    while layers:
        tree = merge(tree, layers.pop())
    return tree


def read_value(text: str, place: str) -> Node:
    """Parse the text of one value (of `--set key=value`) as YAML."""
    return _placed(_parse(text, place), place, None)


def plain_tree(data: Any, place: str) -> Node:
    """A tree of plain data (dicts, lists, scalars), all with the same place."""
    return _placed(data, place, None)


def plain(node: Node) -> Any:
    """The bare data of a tree."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def merge(below: Node, above: Node) -> Node:
    """Merge one tree into another: mappings key by key, anything else is replaced, also by an empty mapping."""
    if not (isinstance(below.value, dict) and isinstance(above.value, dict)) or not above.value:
        return above
    merged = dict(below.value)
    for key, node in above.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, above.place)


def to_text(data: Any) -> str:
    """Plain data as YAML text that reads back equal; keys keep their order."""
    yaml = YAML(typ="rt")
    yaml.default_flow_style = False
    yaml.width = 1 << 20  # folding long strings would change blanks in them
    stream = io.StringIO()
    yaml.dump(_quoted(data), stream)
    return stream.getvalue()


def _quoted(data: Any) -> Any:
    """Double-quote strings that another reader might take for another type."""
    if isinstance(data, Mapping):
        return {_quoted(key): _quoted(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_quoted(value) for value in data]
    if isinstance(data, str):
        harmless = data.isascii() and data[:1].isalpha() and all(c.isalnum() or c in "_-./" for c in data)
        ambiguous = data.lower() in ("yes", "no", "on", "off", "y", "n", "true", "false", "null")
        return str(data) if harmless and not ambiguous else DoubleQuotedScalarString(data)
    return data


def _parse(text: str, place: str) -> Any:
    yaml = YAML(typ="rt")
    try:
        return yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{place}:{mark.line + 1}" if mark is not None and not place.startswith("--set") else place
        # ruamel appends advice for programmers after the first line
        problem = (error.problem or error.context or "bad YAML").strip().splitlines()[0]
        raise UserError(f"{where}: not valid YAML: {problem}") from error
    except (YAMLError, ValueError) as error:
        raise UserError(f"{place}: not valid YAML: {str(error).splitlines()[0]}") from error


def _placed(data: Any, place: str, line: int | None) -> Node:
    """Attach places; `line` is None where the whole of `data` shares one place."""
    here = place if line is None else f"{place}:{line}"
    if isinstance(data, Mapping):
        children = {}
        for key, value in data.items():
            at = line if line is None else _line(data, key, line, mapping=True)
            if not isinstance(key, str):
                where = place if at is None else f"{place}:{at}"
                raise UserError(f"{where}: keys must be words, got {key!r} ({type(key).__name__}); quote it")
            children[str(key)] = _placed(value, place, at)
        return Node(children, here)
    if isinstance(data, list | tuple):
        items = []
        for index, value in enumerate(data):
            items.append(_placed(value, place, line if line is None else _line(data, index, line, mapping=False)))
        return Node(items, here)
    return Node(_scalar(data), here)


def _line(data: Any, key: Any, default: int, mapping: bool) -> int:
    """Line of a key or item; None for what came through a merge key (`<<`)."""
    try:
        return (data.lc.key(key) if mapping else data.lc.item(key))[0] + 1
    except (AttributeError, KeyError, TypeError):
        return default


def _scalar(value: Any) -> Any:
    """Strip ruamel's round-trip classes down to plain Python."""
    if value is None or isinstance(value, bool):
        return value
    if type(value).__name__ == "ScalarBoolean":  # an int subclass of ruamel's, not a bool
        return bool(value)
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value
