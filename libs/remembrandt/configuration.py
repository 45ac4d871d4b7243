"""One YAML file a run, checked by a pydantic model, with `key.sub=value` overrides on the command line."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from remembrandt.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration class: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(cls: type[ConfigT], path: str | Path | None, overrides: Sequence[str] = ()) -> ConfigT:
    """Reads `path` (YAML; None for defaults only), applies overrides and validates.

    Overrides look like `vectors.factory=Flat`; their values are parsed as YAML, so numbers, lists and null work.

    Raises:
        ConfigError: unreadable file, invalid YAML, unknown key (the nearest known one is named), invalid value.
    """
    values: dict[str, Any] = {}
    where = "command line"
    if path is not None:
        where = str(path)
        values = _unshared(read_yaml(Path(path)))
    for override in overrides:
        _apply_override(values, override)
    return parse_config(cls, values, where)


def parse_config(cls: type[ConfigT], values: dict[str, Any], where: str) -> ConfigT:
    """Validates a plain mapping as `cls`; `where` names its origin in the error."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_describe(cls, item) for item in error.errors())) from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, to be saved beside what it produced."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint that ends an error message: the known name closest to `name`, else all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else "known: " + ", ".join(sorted(known))


def read_yaml(path: Path) -> dict[str, Any]:
    """A file's keys and values.

    Raises:
        ConfigError: unreadable, invalid YAML, or no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read config file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, not a {type(values).__name__}")
    return values


def _unshared(node: Any) -> Any:
    """A copy in which what YAML's aliases name is there once for each, so that an override of one is of one."""
    if isinstance(node, dict):
        return {key: _unshared(value) for key, value in node.items()}
    return [_unshared(value) for value in node] if isinstance(node, list) else node


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override '{override}' must look like key.sub=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.setdefault(_key(node, parent), {})
        if not isinstance(child, dict):
            raise ConfigError(f"override '{override}': '{parent}' is a value, not a section")
        node = child
    node[_key(node, last)] = value


def _key(node: dict[Any, Any], text: str) -> Any:
    """The key of a section that is written so; keys of YAML may be numbers."""
    return next((key for key in node if str(key) == text), text)


def _describe(cls: type[BaseModel], error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"unknown key '{key}': {nearest(location[-1], _fields_at(cls, location[:-1]))}"
    if error["type"] == "missing":
        return f"'{key}' is required"
    message = error["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(error.get("input"), dict) else f" (got {error.get('input')!r})"
    return f"'{key}': {message}{shown}" if key else message


def _fields_at(cls: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Known keys of the section that `location` leads to; union tags and list positions are passed over."""
    models = [cls]
    for part in location:
        inner = [
            model for m in models if part in m.model_fields for model in _models_in(m.model_fields[part].annotation)
        ]
        tagged = [m for m in models if any(part == f.default for f in m.model_fields.values())]
        models = inner or tagged or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in get_args(annotation) for model in _models_in(arg)]
