"""What all errors have in common, and the one of settings and arguments."""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "CellxPertError",
    "CellxPertWarning",
    "ConfigError",
]


class CellxPertError(Exception):
    """Base of every error that cellxpert raises on purpose.

    Parameters
    ----------
    where
        The object, modality, layer, column or setting at fault.
    found
        What was found there: counts, and at most five examples.
    fix
        The line or argument that mends it.
    """

    code: ClassVar[str] = "CX000"
    why: ClassVar[str] = ""

    def __init__(self, where: str, *, found: str = "", fix: str = "") -> None:
        self.where, self.found, self.fix = where, found, fix
        lines = [f"[{self.code}] {where}" + (f": {found}" if found else "")]
        lines += [f"Why it matters: {self.why}"] if self.why else []
        lines += [f"Fix: {fix}"] if fix else []
        super().__init__("\n".join(lines))

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the repr

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.where, self.found, self.fix))


def _rebuild(kind: type[CellxPertError], where: str, found: str, fix: str) -> CellxPertError:
    return kind(where, found=found, fix=fix)


class CellxPertWarning(UserWarning):
    """Something that may mislead but does not stop the call; it is recorded in ``uns["cellxpert_info"]`` too."""


# --- settings and arguments: CX0.. ---


class ConfigError(CellxPertError, ValueError):
    """A setting or an argument has a value that it cannot have, or contradicts another one."""

    code = "CX001"
    why = "what was asked for would be undefined."
