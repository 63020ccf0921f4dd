"""Text of others, harmless on a terminal: names, a model's card, rows of files, what a policy or a judge wrote."""

from __future__ import annotations


def printable(text: str) -> str:
    """Without what a terminal would obey.

    >>> printable("red \\x1b[31m")
    'red \\\\x1b[31m'
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """The same, without line breaks.

    >>> one_line("two\\n  lines \\x1b[31m")
    'two lines \\\\x1b[31m'
    """
    return printable(" ".join(text.split()))
