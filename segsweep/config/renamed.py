"""Old names of keys: files of older versions are read with the present names. Standard library only."""

from typing import Any

RENAMED = {"data.repeats": "data.passes", "train.accumulate": "train.grad_accum", "train.clip": "train.grad_clip"}


def renewed(value: Any) -> Any:
    """Return a value of JSON with the present names of keys, in texts `key=value` and `key` and in names of objects."""
    if isinstance(value, str):
        name, *rest = value.split("=", 1)
        return "=".join([RENAMED.get(name, name), *rest])
    if isinstance(value, dict):
        return {renewed(name): renewed(item) for name, item in value.items()}
    return [renewed(item) for item in value] if isinstance(value, list) else value


def renewed_sections(sections: Any) -> Any:
    """Return a configuration, keys by section, with their present names; another value unchanged."""
    if not isinstance(sections, dict):
        return sections
    found = {section: dict(values) if isinstance(values, dict) else values for section, values in sections.items()}
    for before, now in RENAMED.items():
        section, _, name = before.partition(".")
        values = found.get(section)
        if isinstance(values, dict) and name in values:
            values[now.partition(".")[2]] = values.pop(name)
    return found
