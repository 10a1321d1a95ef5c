"""Griffe extension: reads the section ``Example:`` of a docstring as ``Examples:``, so that doctests become code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SINGULAR = re.compile(r"^(\s*)Example:$", flags=re.MULTILINE)


class PluralExamples(griffe.Extension):
    """Renames the section; Google style knows both names, the parser only the plural."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename it in one docstring."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = _SINGULAR.sub(r"\1Examples:", obj.docstring.value)
