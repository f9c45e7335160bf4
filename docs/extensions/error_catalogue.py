"""Writes the error catalogue (errors.md) from the classes of ``cellxpert.errors`` while the documentation is built."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

from cellxpert import config, errors
from cellxpert.errors import base, data, models

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PLACES = ("% error-example", "% error-catalogue")
"""The lines of errors.md that are replaced."""


def example() -> str:
    """MyST text: the whole message of one error."""
    try:
        config.preset("tiny")
    except errors.ConfigError as error:
        return f"```text\n{error}\n```"
    raise AssertionError("there is a preset 'tiny' now: choose another mistake")


def section_titles() -> dict[str, str]:
    """First digit of codes -> title, from the section comments (``# --- settings and arguments: CX0.. ---``)."""
    text = "\n".join(inspect.getsource(module) for module in (base, data, models))
    return {digit: title for title, digit in re.findall(r"^# -+ (.+?): CX(\d)\S* -+$", text, flags=re.MULTILINE)}


def catalogue() -> str:
    """MyST text: one heading per kind of error, in sections, by code."""
    kinds = [getattr(errors, name) for name in errors.__all__]
    kinds = [kind for kind in kinds if issubclass(kind, errors.CellxPertError) and kind is not errors.CellxPertError]
    text, titles = [], section_titles()
    for kind in sorted(kinds, key=lambda k: k.code):
        if title := titles.pop(kind.code[2], ""):
            text.append(f"## {title[0].upper()}{title[1:]}\n")
        builtins = [kin.__name__ for kin in kind.__mro__ if kin.__module__ == "builtins"]
        also = next((name for name in builtins if name not in {"Exception", "BaseException", "object"}), None)
        text.append(f"({kind.code.lower()})=\n### {kind.code}: `{kind.__name__}`\n")
        text.append(inspect.getdoc(kind) + "\n")
        if kind.why:
            text.append(f"Why it matters: {kind.why}\n")
        text.append(f"{{class}}`cellxpert.errors.{kind.__name__}`" + (f", also a `{also}`.\n" if also else ".\n"))
    assert not titles, f"sections without errors: {titles}"
    return "\n".join(text)


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the catalogue into errors.md when Sphinx reads it."""
    if docname == "errors":
        for place, text in zip(PLACES, (example(), catalogue()), strict=True):
            assert place in source[0], f"errors.md has no line {place!r}"
            source[0] = source[0].replace(place, text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
