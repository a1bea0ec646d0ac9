"""Values read from JSON, checked against type hints: files may hold anything."""

import json
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints


def typed(hint: Any, value: Any, name: str) -> Any:
    """Convert a JSON value to the type of a hint. Whole numbers pass as floats, lists as tuples.

    Args:
        hint: A number, a string, a dictionary, a list, a tuple, a dataclass, all of whose fields must be there, or one
            of these or None.
        name: What the value is, for the error.

    Raises:
        ValueError: The value has another type.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if NoneType in parts:
        return None if value is None else typed(parts[0], value, name)
    if origin is list and isinstance(value, list):
        return [typed(parts[0], each, name) for each in value]
    if origin is tuple and isinstance(value, list | tuple):
        if parts[-1] is Ellipsis:
            return tuple(typed(parts[0], each, name) for each in value)
        if len(value) == len(parts):
            return tuple(typed(part, each, name) for part, each in zip(parts, value, strict=True))
    elif is_dataclass(hint) and isinstance(value, dict) and set(value) == {field.name for field in fields(hint)}:
        hints: Any = get_type_hints(hint)
        return hint(**{key: typed(hints[key], each, key) for key, each in value.items()})  # type: ignore[operator]
    elif origin is dict and isinstance(value, dict):
        return value
    elif hint is float and type(value) is int:
        return float(value)
    elif type(value) is hint:
        return value
    shown = json.dumps(value, ensure_ascii=False)
    raise ValueError(f"its {name} is {shown if len(shown) <= 40 else shown[:40] + '…'}")
