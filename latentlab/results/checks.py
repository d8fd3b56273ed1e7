"""Rows of the table of checks."""

from collections.abc import Iterable
from typing import Any

Row = tuple[str, str, Any, str, str]


def check_row(check: str, quantity: str, value: float, threshold: str, *, ok: bool, otherwise: str = "fail") -> Row:
    return check, quantity, float(value), threshold, "pass" if ok else otherwise


def not_applicable(checks: Iterable[str], why: str) -> list[Row]:
    return [(check, "", why, "", "not applicable") for check in checks]
