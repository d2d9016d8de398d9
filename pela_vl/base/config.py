"""Typed configuration: YAML files and `--set key=value` into dataclasses, with errors that name file, line and key.

A schema is a dataclass whose fields are bool, int, float, str, Path, Literal, Optional and unions of them, list, tuple,
dict with string keys, and other dataclasses. A text that begins with `~/` is a path below the home folder. A ValueError from
`__post_init__` is reported with its section's place.
A dataclass may name one of its fields as `SHORTHAND`: a plain value in place of the section sets that field.
"""

import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pela_vl.base.errors import UserError, expand_home
from pela_vl.base.files import atomic_write
from pela_vl.base.yaml_tree import Node, merge, plain, plain_tree, read_value, read_with_bases, to_text

T = TypeVar("T")

# YAML 1.2 reads 1.e-4 or 1_0e3 as text in some spellings; a float field accepts them
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?")


def load(schema: type[T], path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> T:
    """Read a configuration file and the files that it names as `base`, apply overrides, and check it against the
    schema.

    Args:
        schema: the dataclass.
        path: of the YAML file; `~/` is the home folder.
        overrides: "a.b=value"; later ones win.

    Raises:
        UserError: For anything wrong in the files or the overrides.
    """
    path = expand_home(os.fspath(path))
    tree = read_with_bases(path, lambda node: _expand(schema, node))
    for override in overrides:
        tree = _override(schema, tree, override)
    return _convert(schema, Node(tree.value, path), "", schema)


def from_dict(schema: type[T], data: Mapping[str, Any], place: str) -> T:
    """Create a config from plain data, such as a checkpoint's.

    Args:
        schema: the dataclass.
        data: what `to_dict` returned.
        place: where the data is from, for errors.

    Raises:
        UserError: If the data does not fit the schema.
    """
    return _convert(schema, _expand(schema, plain_tree(data, place)), "", schema)


def to_dict(config: Any) -> Any:
    """A config as plain dicts, lists and scalars, in the order of its fields."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def dump_yaml(config: Any, path: str | os.PathLike[str]) -> None:
    """Write a config as YAML, whole or not at all; `load` reads it back equal."""
    with atomic_write(path, "w") as stream:
        stream.write(to_text(to_dict(config)))


def _override(schema: type, tree: Node, text: str) -> Node:
    """Lay one "a.b=value" over the tree."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key or "" in key.split("."):
        raise UserError(f"--set {text}: write it as key=value, for example optim.lr=1e-4")
    place = f"--set {key}"
    node = read_value(value, place)
    for part in reversed(_split_key(schema, key)):
        node = Node({part: node}, place)
    return Node(merge(tree, _expand(schema, node)).value, tree.place)


def _expand(schema: Any, node: Node) -> Node:
    """Write out the sections that are given by a plain value alone, see `SHORTHAND`, before trees are merged."""
    section = next((kind for kind in _members(schema) if dataclasses.is_dataclass(kind)), None)
    if section is None:
        return node
    if not isinstance(node.value, dict):
        name = getattr(section, "SHORTHAND", None)
        return Node({name: node}, node.place) if name and not isinstance(node.value, list | types.NoneType) else node
    hints = typing.get_type_hints(section)
    return Node({key: _expand(hints.get(key, Any), child) for key, child in node.value.items()}, node.place)


def _split_key(schema: Any, key: str) -> list[str]:
    """Cut a dotted key into fields; below a dict field the rest is one key, since globs and module names hold dots."""
    parts: list[str] = []
    rest = key
    while rest:
        choices = [kind for kind in _members(schema) if kind is not type(None)]
        section = next((kind for kind in choices if dataclasses.is_dataclass(kind)), None)
        table = next((kind for kind in choices if get_origin(kind) is dict), None)
        if section is None and table is not None and not dataclasses.is_dataclass(get_args(table)[1]):
            return [*parts, rest]
        part, _, rest = rest.partition(".")
        parts.append(part)
        if section is not None:
            schema = typing.get_type_hints(section).get(part, Any)
        else:
            schema = get_args(table)[1] if table is not None else Any
    return parts


def _members(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type alone."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _convert(kind: Any, node: Node, key: str, root: type) -> Any:
    """Build a value of type `kind` from a node.

    `key` is the value's full dotted name, "" at the top; `root` is the whole schema, where hints look for other keys.
    """
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _convert_section(kind, node, key, root)
    if kind is Any:
        return plain(node)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _convert_union(kind, node, key, root)
    if origin is Literal:
        if any(node.value == choice and type(node.value) is type(choice) for choice in args):
            return node.value
        near = difflib.get_close_matches(str(node.value), [str(choice) for choice in args], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise _wrong(f"one of {', '.join(map(repr, args))}", node, key, hint)
    if origin in (list, tuple, dict) or kind in (list, tuple, dict):
        return _convert_container(origin or kind, args, node, key, root)
    return _convert_scalar(kind, node, key)


def _convert_scalar(kind: Any, node: Node, key: str) -> Any:
    value = node.value
    if kind is type(None) and value is None:
        return None
    if kind is float and not isinstance(value, bool):
        if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            value = float(value)
        if isinstance(value, int | float) and not math.isnan(value):
            try:
                return float(value)
            except OverflowError:
                pass
    if kind in (str, Path) and isinstance(value, str):
        return kind(value if value == "~" else expand_home(value))
    if kind in (bool, int) and type(value) is kind:
        return value
    if kind not in (bool, int, float, str, Path, type(None)):
        raise TypeError(f"a config field cannot have the type {kind} (key {key!r})")
    raise _wrong(_name(kind), node, key, "; quote it" if kind is str and value is not None else "")


def _convert_union(kind: Any, node: Node, key: str, root: type) -> Any:
    members = _members(kind)
    if node.value is None and type(None) in members:
        return None
    rest = [member for member in members if member is not type(None)]
    if len(rest) == 1:
        return _convert(rest[0], node, key, root)
    # a value that already has one of the types keeps it: 3 stays an int under float | int
    rest.sort(key=lambda member: type(node.value) is not member)
    for member in rest:
        try:
            return _convert(member, node, key, root)
        except UserError:
            continue
    raise _wrong(_name(kind), node, key)


def _convert_container(origin: Any, args: tuple[Any, ...], node: Node, key: str, root: type) -> Any:
    value = node.value
    name = _name(origin[args] if args else origin)
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(name, node, key)
        inner = args[1] if args else Any
        return {part: _convert(inner, child, f"{key}.{part}", root) for part, child in value.items()}
    if not isinstance(value, list):
        raise _wrong(name, node, key)
    fixed = origin is tuple and args and args[-1] is not Ellipsis
    if fixed and len(args) != len(value):
        raise _wrong(f"{len(args)} values ({name})", node, key)
    inners = args if fixed else (args[0] if args else Any,) * len(value)
    return origin(
        _convert(inner, child, f"{key}[{index}]", root)
        for index, (inner, child) in enumerate(zip(inners, value, strict=True))
    )


def _convert_section(schema: type, node: Node, key: str, root: type) -> Any:
    if not isinstance(node.value, dict):
        raise _wrong(f"a section with the keys {', '.join(_fields(schema))}", node, key)
    fields, hints = _fields(schema), typing.get_type_hints(schema)
    if not key and "base" in fields:
        raise TypeError(f"{schema.__name__}: the key 'base' names a file to build on; call the field otherwise")
    values = {}
    for name, child in node.value.items():
        if name not in fields:
            raise UserError(f"{child.place}: unknown key {_join(key, name)!r}; {_nearest(schema, key, name, root)}")
        values[name] = _convert(hints[name], child, _join(key, name), root)
    missing = [name for name, field in fields.items() if name not in values and _is_required(field)]
    if missing:
        wants = ", ".join(f"{_join(key, name)!r} ({_name(hints[name])})" for name in missing)
        raise UserError(f"{node.place}: missing {'key' if len(missing) == 1 else 'keys'} {wants}")
    try:
        return schema(**values)
    except (ValueError, UserError) as error:
        raise UserError(f"{node.place}: {f'section {key!r}: ' if key else ''}{error}") from error


def _fields(schema: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(schema) if field.init}


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _nearest(schema: type, key: str, name: str, root: type) -> str:
    """What the writer of an unknown key may have meant: the same word in another section, else a similar sibling."""
    elsewhere = [path for path in _all_keys(root, "", ()) if path.rpartition(".")[2] == name]
    if elsewhere:
        return f"did you mean {elsewhere[0]!r}?"
    near = difflib.get_close_matches(name, list(_fields(schema)), n=1)
    if near:
        return f"did you mean {_join(key, near[0])!r}?"
    return f"the keys here are {', '.join(_fields(schema))}"


def _all_keys(schema: type, key: str, above: tuple[type, ...]) -> list[str]:
    """Every dotted key below a section, sections within themselves left out."""
    keys = []
    hints = typing.get_type_hints(schema)
    for name in _fields(schema):
        keys.append(_join(key, name))
        for member in _members(hints[name]):
            if isinstance(member, type) and dataclasses.is_dataclass(member) and member not in (*above, schema):
                keys += _all_keys(member, keys[-1], (*above, schema))
    return keys


def _name(kind: Any) -> str:
    """A type as the writer of a YAML file would say it."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join("null" if member is type(None) else _name(member) for member in get_args(kind))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    if get_origin(kind) is not None:
        return str(kind).replace("typing.", "")
    return "a section" if dataclasses.is_dataclass(kind) else getattr(kind, "__name__", str(kind))


def _wrong(wants: str, node: Node, key: str, hint: str = "") -> UserError:
    got = plain(node)
    shown = repr(got) if len(repr(got)) <= 60 else repr(got)[:57] + "..."
    got_name = "null" if got is None else f"{shown} ({type(got).__name__})"
    return UserError(f"{node.place}: key {key!r} wants {wants}, got {got_name}{hint}")
