"""A report as blocks of text, rendered as Markdown or as a web page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

_MARKS = ((re.compile(r"\*\*(.+?)\*\*"), r"<strong>\1</strong>"), (re.compile(r"`([^`]+)`"), r"<code>\1</code>"))

#: What begins HTML, a block or a cell, with the backslashes before it, which are doubled: none undoes the escape.
_ACTIVE = re.compile(r"(\\*)(<|^[#>])")
_BAR = re.compile(r"(\\*)(\|)")


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2

    def markdown(self) -> str:
        """As Markdown."""
        return f"{'#' * self.level} {_line(self.text)}"

    def html(self) -> str:
        """As HTML."""
        return f"<h{self.level}>{_inline(self.text)}</h{self.level}>"


@dataclass(frozen=True)
class Text:
    """A paragraph, in which ``**`` and backquotes mark words."""

    text: str

    def markdown(self) -> str:
        """As Markdown."""
        return _line(self.text)

    def html(self) -> str:
        """As HTML."""
        return f"<p>{_inline(self.text)}</p>"


@dataclass(frozen=True)
class Facts:
    """A table of names and values."""

    rows: tuple[tuple[str, str], ...]

    def markdown(self) -> str:
        """As Markdown; a value cannot break the table."""
        return "\n".join(["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in self.rows)])

    def html(self) -> str:
        """As HTML."""
        style = ' style="text-align: left; white-space: normal"'
        rows = (f"<tr><td>{_inline(name)}</td><td{style}>{_inline(value)}</td></tr>" for name, value in self.rows)
        return f'<div class="wide"><table>{"".join(rows)}</table></div>'


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    sentences: tuple[str, ...]

    def markdown(self) -> str:
        """As Markdown."""
        return "\n".join(f"- {_line(sentence)}" for sentence in self.sentences)

    def html(self) -> str:
        """As HTML."""
        return f"<ul>{''.join(f'<li>{_inline(sentence)}</li>' for sentence in self.sentences)}</ul>"


Block = Heading | Text | Facts | Items


def to_markdown(blocks: Iterable[Block]) -> str:
    r"""The blocks as Markdown.

    Example:
        >>> to_markdown([Heading("Title", 1), Facts((("name", "a | b"),))]).splitlines()
        ['# Title', '', '| | |', '|---|---|', '| name | a \\| b |']
    """
    return "\n\n".join(block.markdown() for block in blocks) + "\n"


def to_html(blocks: Iterable[Block], figures: Mapping[str, str] | None = None) -> str:
    """The blocks as one web page that needs nothing else.

    Args:
        blocks: The report.
        figures: ``<svg>`` elements by caption, shown at the end.
    """
    from dpmodel.figures.page import web_page

    parts = [block.html() for block in blocks]
    for caption, picture in (figures or {}).items():
        parts.append(f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>")
    return web_page("Privacy report", "\n".join(parts))


def _inline(text: str) -> str:
    found = escape(text)
    for pattern, mark in _MARKS:
        found = pattern.sub(mark, found)
    return found


def _line(text: str) -> str:
    """One line of Markdown: a text from a file can neither begin a block nor hold HTML."""
    return _ACTIVE.sub(r"\1\1\\\2", " ".join(text.split()))


def _cell(text: str) -> str:
    return _BAR.sub(r"\1\1\\\2", _line(text))
