"""How frozen dataclasses are made of JSON or YAML values, and changed by ``field=value`` texts: every field is checked.

What goes wrong is said in one line that names the field.
"""

import difflib
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def config_from_json(kind: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Make a config dataclass of JSON values: types checked, lists back to tuples, defaults for what is left out.

    Args:
        kind: the dataclass; its fields may be dataclasses, tuples of them, or one of several kinds.
        values: by the name of the field.
        where: what messages begin with: a file, a flag.

    Raises:
        ValueError: an unknown field (the nearest known one is named), one that is missing or of another type, or what
            the dataclass itself refuses.
    """
    config: Config = _build(kind, values, where, "")
    return config


def config_from_yaml(kind: type[Config], path: Path) -> Config:
    """Make a config dataclass of a YAML file, as ``config_from_json`` does; an empty file is all defaults.

    Raises:
        ValueError: the file is not YAML, or has a field twice, or as ``config_from_json``; it is named.
        FileNotFoundError: there is no such file.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        values, twice = yaml.safe_load(text), _written_twice(yaml.compose(text, yaml.SafeLoader))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error}); expected YAML") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if twice:
        raise ValueError(f"{path}: {twice[0]} is there twice (line {twice[1]}); expected once")
    return config_from_json(kind, {} if values is None else values, str(path))


def _written_twice(node: Any) -> tuple[str, int] | None:
    """A key that a mapping of a YAML tree has twice, and its line: of the two, the loader would drop the first."""
    seen: set[str] = set()
    for child in node.value if node is not None and isinstance(node.value, list) else ():
        key, value = child if isinstance(child, tuple) else (None, child)
        if key is not None and key.value in seen:
            return key.value, key.start_mark.line + 1
        if key is not None and isinstance(key.value, str):
            seen.add(key.value)
        if found := _written_twice(value):
            return found
    return None


def override(config: Config, settings: Sequence[str], where: str = "--set") -> Config:
    """Apply ``section.field=value`` settings: ``optim.lr=1e-3``, ``model.encoder.depths=1,1,1,2,1``.

    Args:
        config: a dataclass of dataclasses.
        settings: values are JSON, or lists with commas, or text.
        where: what messages begin with.

    Raises:
        ValueError: an unknown field (the nearest known one is named) or a value of another type.
    """
    values = asdict(config)  # type: ignore[call-overload]
    known = list(_names(values))
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"{where} {setting}: expected section.field=value")
        if name not in known:
            raise ValueError(f"{where} {name}: no such setting; the nearest is {_nearest(name, known)}")
        *sections, last = name.split(".")
        section = values
        for key in sections:
            section = section[key]
        section[last] = _value(text, isinstance(section[last], list | tuple))
    return config_from_json(type(config), values, where)


def _build(kind: Any, values: Any, where: str, path: str) -> Any:
    """A dataclass, or a tuple of dataclasses, or a plain value."""
    if get_origin(kind) in (Union, types.UnionType) and any(is_dataclass(one) for one in get_args(kind)):
        if values is None and type(None) in get_args(kind):
            return None
        return _build(_alternative([one for one in get_args(kind) if is_dataclass(one)], values), values, where, path)
    if get_origin(kind) is tuple and get_args(kind)[1:] == (...,) and is_dataclass(get_args(kind)[0]):
        if not isinstance(values, list | tuple):
            raise ValueError(f"{where}: {path} is {values!r}; expected a list")
        return tuple(_build(get_args(kind)[0], one, where, f"{path}[{i}]") for i, one in enumerate(values))
    if not is_dataclass(kind):
        return _check(kind, values, where, path)
    if not isinstance(values, Mapping):
        names = ", ".join(field.name for field in fields(kind))
        raise ValueError(f"{where}: {path or 'the whole'} is {values!r}; expected the fields {names}")
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    prefix = f"{path}." if path else ""
    for name in values:
        if name not in known:
            near = _nearest(str(name), list(known))
            raise ValueError(f"{where}: {prefix}{name}: no such field; the nearest is {prefix}{near}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where}: {prefix}{name} is missing")
    arguments = {name: _build(hints[name], value, where, prefix + name) for name, value in values.items()}
    make: Any = kind
    try:
        return make(**arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {path}: {error}" if path else f"{where}: {error}") from None


def _alternative(kinds: Sequence[Any], values: Any) -> Any:
    """Of several dataclasses the one that knows most of the fields; of equals the first."""

    def known(kind: Any) -> int:
        return len({field.name for field in fields(kind)} & set(values)) if isinstance(values, Mapping) else 0

    return max(kinds, key=known)


def _check(kind: Any, value: Any, where: str, path: str) -> Any:
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        return parser.parse_object({"value": value}).value
    except (ArgumentError, ValueError, TypeError):
        name = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")
        raise ValueError(f"{where}: {path} is {value!r}; expected {name}") from None


def _nearest(name: str, known: Sequence[str]) -> str:
    return difflib.get_close_matches(name, known, 1, 0.0)[0]


def _names(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{key}.")


def _value(text: str, several: bool) -> Any:
    """JSON where it is JSON, a list where it has commas or stands for several values, text otherwise."""
    for form in (text, f"[{text}]"):
        try:
            value = json.loads(form)
        except ValueError:
            continue
        return [value] if several and value is not None and not isinstance(value, list) else value
    return text.split(",") if several else text
