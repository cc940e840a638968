"""Plain text for people: tables whose columns are aligned, and lines that say what a word before them is about."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

WIDTH = 100


class Text(str):
    """A text that a notebook, or Python's prompt, shows as it is printed."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows below their header, indented; columns that are empty in all rows are left out."""
    rows = list(rows)
    kept = [column for column in range(len(header)) if column == 0 or any(row[column] for row in rows)]
    lines = [[header[column] for column in kept]]
    lines += [["  " + row[0], *(row[column] for column in kept[1:])] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pad = lambda line: "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    return "\n".join(map(pad, lines))


def labelled(lines: Iterable[tuple[str, str]]) -> str:
    """What is said of each label, beside it, one below the other; lines that are too long go on below themselves."""
    lines = list(lines)
    width = max((len(label) for label, _ in lines), default=0) + 2
    return "\n".join(label.ljust(width) + f"\n{' ' * width}".join(_wrapped(text, width)) for label, text in lines)


def _wrapped(text: str, width: int) -> Iterator[str]:
    for line in text.split("\n"):
        inside = " " * (len(line) - len(line.lstrip()))
        further = inside and inside + " " * len("expected: ")  # lines of an error have labels of their own
        how: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
        yield from textwrap.wrap(line, WIDTH - width, subsequent_indent=further, **how)


def listed(words: Iterable[str], last: str = "and") -> str:
    """Words in one phrase, as in "a, b and c"."""
    words = list(words)
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
