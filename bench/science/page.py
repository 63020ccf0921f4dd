"""A page as a list of blocks, written as HTML that needs nothing else (no network, no script) and as Markdown with every number."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from canvas import named
from figures import Figure

VERDICTS = ("supported", "contradicted", "no power", "not run")


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Pictures:
    """Panels without tables of their own: their numbers stand in one beside them."""

    panels: Sequence[tuple[str, str]]
    """Title and SVG."""
    caption: str


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


Block = str | Table | Bullets | Figure | Pictures
"""A string is a paragraph, or a heading where it begins with `### `."""


@dataclass(frozen=True)
class Section:
    name: str
    """Unique; what links lead to."""
    title: str
    blocks: Sequence[Block]


INLINE = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|\[([^\]]+)\]\(([^)\s]+)\)")


def inline(text: str) -> str:
    """
    >>> inline("a < b: `x|y`, **no power**, [E1](#E1)")
    'a &lt; b: <code>x|y</code>, <b class="verdict no-power">no power</b>, <a href="#E1">E1</a>'
    """
    out, end = [], 0
    text = re.sub(r"\b([np]) ([=<]) ", "\\1\u00a0\\2\u00a0", text)  # not broken over lines
    for found in INLINE.finditer(text):
        out.append(html.escape(text[end : found.start()], quote=False))
        code, bold, label, target = (part and html.escape(part) for part in found.groups())
        kind = f' class="verdict {bold.replace(" ", "-")}"' if bold in VERDICTS else ""
        out.append(f"<code>{code}</code>" if code else f"<b{kind}>{bold}</b>" if bold else f'<a href="{target}">{label}</a>')
        end = found.end()
    return "".join(out) + html.escape(text[end:], quote=False)


def is_figure(cell: str) -> bool:
    """Whether a cell holds numbers alone, which do not break."""
    return re.fullmatch(r"[−+]?[\d.,–]+( \[.*\])?|< \.001|[−+.\d ]+ → [\d.]+", cell) is not None


def html_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{inline(cell)}</th>' for cell in table.head)
    rows = []
    for row in table.rows:
        cells = [
            f'<td class="{"figure" if is_figure(cell) else "text"}" data-head="{html.escape(name)}"><span>{inline(cell)}</span></td>'
            for name, cell in zip(table.head, row, strict=True)
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>\n")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{"".join(rows)}</tbody></table></div>\n'


def html_panels(panels: Sequence[tuple[str, str]], caption: str, prefix: str) -> str:
    drawn = []
    for index, (title, svg) in enumerate(panels):
        told = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
        drawn.append(f'<div class="panel"><div>{html.escape(title)}</div>{named(told, f"{prefix}-{index}")}</div>\n')
    return f'<figure><div class="panels">\n{"".join(drawn)}</div><figcaption>{inline(caption)}</figcaption></figure>\n'


def html_block(block: Block, prefix: str) -> str:
    match block:
        case Table():
            return html_table(block)
        case Bullets():
            return f"<ul>{''.join(f'<li>{inline(item)}</li>' for item in block.items)}</ul>\n"
        case Figure():
            return html_panels([(panel.title, panel.svg) for panel in block.panels], block.caption, prefix)
        case Pictures():
            return html_panels(block.panels, block.caption, prefix)
    return f"<h3>{inline(block[4:])}</h3>\n" if block.startswith("### ") else f"<p>{inline(block)}</p>\n"


def as_html(title: str, sections: Sequence[Section]) -> str:
    """The whole page; the first section is its head."""
    parts = []
    for number, section in enumerate(sections):
        level = "h2" if number else "h1"
        body = "".join(html_block(block, f"f{number}-{index}") for index, block in enumerate(section.blocks))
        kind = "" if number else ' class="head"'
        parts.append(f'<section id="{html.escape(section.name)}"{kind}>\n<{level}>{inline(section.title)}</{level}>\n{body}</section>\n')
    style = (Path(__file__).parent / "report.css").read_text()
    head = (
        f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>'
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n<style>\n{style}</style>\n</head>\n<body>\n{"".join(parts)}</body>\n</html>\n'
    )


def md_table(table: Table) -> str:
    """
    >>> print(md_table(Table(["what", "n"], [["a|b", "8"]])), end="")
    | what | n |
    |---|---|
    | a\\|b | 8 |
    """
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    text = [
        "|".join(["", *(f" {cell} ".replace("|", r"\|").replace("\n", " ") if row is not lines[1] else cell for cell in row), ""])
        for row in lines
    ]
    return "\n".join(text) + "\n"


def md_block(block: Block) -> str:
    match block:
        case Table():
            return md_table(block)
        case Bullets():
            return "".join(f"- {item}\n" for item in block.items)
        case Figure():
            parts = [f"**{panel.title}**\n\n{md_table(Table(panel.head, panel.rows))}" for panel in block.panels]
            return f"### The numbers of the plots\n\n{block.caption}\n\n" + "\n".join(parts)
        case Pictures():
            return ""
    return block + "\n"


def as_md(sections: Sequence[Section]) -> str:
    """The same without pictures; tables give the numbers of each."""
    parts = []
    for number, section in enumerate(sections):
        anchor = f'<a id="{section.name}"></a>\n\n' if number else ""
        body = "\n".join(text for block in section.blocks if (text := md_block(block)))
        parts.append(f"{anchor}{'##' if number else '#'} {section.title}\n\n{body}")
    return "\n".join(parts)
