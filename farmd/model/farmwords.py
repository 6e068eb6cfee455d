# SPDX-License-Identifier: Apache-2.0
"""What pydantic found wrong with the shape of `farm.toml`, in the words of `farm.toml`."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from farmd.model.farmcheck import Finding
from farmd.model.farmshape import TABLES, known_keys, shown, suggestion
from farmd.model.positions import Part, Path

_EXPECTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "an array",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
"""pydantic's error types that mean "of another type", and what was expected."""


_BOUNDS = {
    "ge": "It must be at least {}.",
    "gt": "It must be more than {}.",
    "le": "It can be at most {}.",
    "lt": "It must be less than {}.",
    "min_length": "It needs at least {}.",
    "max_length": "It can have at most {}.",
}
"""pydantic's bounds, as they stand in an error's context."""


def shape_findings(error: ValidationError, data: dict[str, Any]) -> list[Finding]:
    """Every error of `error`, which came of `data`. A key that is missing because it is misspelt is one, not two."""
    details = error.errors(include_url=False)
    unknown = [_shape_finding(detail, data) for detail in details if detail["type"] == "extra_forbidden"]
    misspelt = {(finding.path[:-1], finding.next_step) for finding in unknown}
    found = []
    for detail in details:
        path: Path = tuple(detail["loc"])
        if detail["type"] != "missing" or (path[:-1], f'Did you mean "{path[-1]}"?') not in misspelt:
            found.append(_shape_finding(detail, data))
    return found


def _shape_finding(detail: ErrorDetails, data: dict[str, Any]) -> Finding:
    """pydantic's error in our words."""
    path: Path = tuple(detail["loc"])
    key, context = path[-1], detail.get("ctx", {})
    named = next(step for step in reversed(path) if isinstance(step, str))
    where = _label(path, data)
    if detail["type"] == "extra_forbidden":
        return _unknown_key(path, where)
    if detail["type"] == "missing":
        if len(path) == 1:
            header = f"[{key}]" if key == "farm" else f"[[{key}]]"
            return Finding((), f"there is no {header} table", f"Add {header} with {_required(str(key))}.")
        return Finding(path, f"{where} has no {key}", f"Add {key} = ... to it.", Part.KEY)
    if detail["type"] == "farm":
        return Finding(path, f'"{named}" in {where} {context["what"]}', str(context["next_step"]))
    subject = f'"{named}" in {where}' if len(path) > 1 and where != named else f'"{named}"'
    if expected := _EXPECTED.get(detail["type"]):
        if named in TABLES and len(path) <= 2:
            return _not_a_table(path, named, detail["input"])
        return Finding(path, f"{subject} is {shown(detail['input'])}, not {expected}", f"Write {expected}.")
    given = detail["input"]
    value = f"has {len(given)} entries" if isinstance(given, list) else f"is {shown(given)}"
    for bound, words in _BOUNDS.items():
        if bound in context:
            return Finding(path, f"{subject} {value}", words.format(f"{context[bound]:g}"))
    return Finding(path, f"{subject} {value}", f"{detail['msg']}.")


def _not_a_table(path: Path, table: str, value: object) -> Finding:
    if table in ("farm", "node", "metrics", "health"):
        return Finding(path, f'"{table}" is {shown(value)}, not a table', f"Write [{table}] on a line, once.")
    if isinstance(value, dict):
        return Finding(path, f'"{table}" is a single table', f"Write [[{table}]] on a line, once for each.")
    return Finding(path, f'"{table}" is {shown(value)}, not tables', f"Write [[{table}]] on a line, once for each.")


def _required(table: str) -> str:
    names = [name for name, field in TABLES[table].model_fields.items() if field.is_required()]
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]


def _unknown_key(path: Path, where: str) -> Finding:
    key = str(path[-1])
    table = None if len(path) == 1 else str(path[0])
    known = known_keys(table)
    if table is None:
        listed = "The tables are " + ", ".join(known) + "."
        return Finding(path, f'unknown table or key "{key}"', suggestion(key, known, listed), Part.KEY)
    listed = f"It can have {', '.join(known)}."
    return Finding(path, f'unknown key "{key}" in {where}', suggestion(key, known, listed), Part.KEY)


def _label(path: Path, data: dict[str, Any]) -> str:
    """How a person calls the table that `path` leads into: `[farm]`, or `[[rule]] "web"`."""
    table = str(path[0])
    if len(path) < 2 or not isinstance(path[1], int):
        return f"[{table}]"
    entry = data[table][path[1]]
    name = (entry.get("name") or entry.get("address")) if isinstance(entry, dict) else None
    return f'[[{table}]] "{name}"' if isinstance(name, str) else f"[[{table}]] number {path[1] + 1}"
