"""Plain text for people: tables whose columns are aligned, and lines that say what a word before them is about."""

import textwrap
from collections.abc import Iterable, Sequence

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
    """Lines of a label and what is said of it, one below the other; long ones go on where they begin."""
    lines = list(lines)
    width = max((len(label) for label, _ in lines), default=0) + 2
    wrap = lambda label, text: textwrap.fill(
        text,
        WIDTH,
        initial_indent=label.ljust(width),
        subsequent_indent=" " * width,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(wrap(label, text) for label, text in lines)


def listed(words: Iterable[str], last: str = "and") -> str:
    """Words in one phrase, as in "a, b and c"."""
    words = list(words)
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
