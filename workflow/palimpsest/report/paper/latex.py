r"""What is written for papers: text and tables as Markdown and as LaTeX that compiles as it is.

Text cites works as Pandoc's Markdown does, `[@key; @other]`, which is `\cite{key,other}` in LaTeX.
The tables need the packages array, booktabs and graphicx.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Sequence

from palimpsest.report.spec import StudyView

Table = tuple[str, str, list[str], list[list[str]]]  # name, caption, header, rows of text
Figure = tuple[str, str, bool]  # name, caption, whether it is wider than a column

SPECIAL = {c: "\\" + c for c in "&%$#_"} | {
    "\\": r"$\backslash$", "{": r"$\{$", "}": r"$\}$", "|": "$|$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "→": r"$\to$", "Δ": r"$\Delta$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "−": "$-$",
    "–": "--", "[": "{[}", "]": "{]}", "†": r"\dag{}", "‡": r"\ddag{}",
    "<": "$<$", ">": "$>$", "≤": r"$\le$", "≥": r"$\ge$", "×": r"$\times$",
    "α": r"$\alpha$", "β": r"$\beta$", "τ": r"$\tau$", "ᵢ": "$_i$", "\u00a0": "~",
}  # fmt: skip
KNOWN = set("’‘“”…·±°ß£§") | {"æ", "ø", "Æ", "Ø", "œ"}  # to pdflatex, as they are
ACCENTS = set("\u0300\u0301\u0302\u0303\u0308\u030a\u030c\u0327")
BREAK = re.compile(r"/|\$\|\$|\\_")
CODE = re.compile(r"`([^`]*)`")
CITED = re.compile(r"\[(@[^\]]+)\]")
COLUMN, PAGE = 54, 118  # characters of \footnotesize, as wide as a column and as a page
BETWEEN = 3  # characters, as wide as the space between two columns of a table
SHORT = 10  # characters of a title that is not broken into lines, if cells are narrower
LONG = 44  # characters of a cell, above which it is broken into lines
FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def cite(keys: Sequence[str]) -> str:
    """Return how text cites some works; nothing if there are none."""
    return f" [{'; '.join(f'@{key}' for key in keys)}]" if keys else ""


def markdown(table: Table) -> str:
    """Return a table as GitHub Markdown."""
    _, caption, header, rows = table
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    body = "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines)
    return f"{caption}.\n\n{body}\n"


def latex(table: Table) -> str:
    """Return a table as LaTeX: in a column if it fits, else over the page, at most as wide as it.

    Titles of columns are broken at their blanks; where that is not enough they stand upright.
    """
    name, caption, header, rows = table
    cells = [max(map(_length, column)) for column in zip([""] * len(header), *rows, strict=True)]
    heads = [_broken(title, width) for title, width in zip(header, cells, strict=True)]
    widths = [max(min(LONG, w), *map(len, h)) for w, h in zip(cells, heads, strict=True)]
    wide = sum(widths) + BETWEEN * (len(widths) - 1)
    kind = "table" if wide <= COLUMN else "table*"
    stands = [wide > PAGE and width > cell for width, cell in zip(widths, cells, strict=True)]
    sides = [_side(cell, first=k == 0) for k, cell in enumerate(cells)]
    head = " & ".join(map(_heading, heads, [False, *stands[1:]], sides))
    body = [
        " & ".join(tex(c, breaks=w > LONG) for c, w in zip(row, cells, strict=True)) for row in rows
    ]
    return "\n".join([
        rf"\begin{{{kind}}}", r"  \centering\footnotesize", rf"  \caption{{{tex(caption)}.}}",
        rf"  \label{{tab:{name}}}\smallskip", f"  {FIT}",
        rf"  \begin{{tabular}}{{{''.join(sides)}}}", r"    \toprule", rf"    {head} \\",
        r"    \midrule", *[rf"    {row} \\" for row in body], r"    \bottomrule",
        r"  \end{tabular}}", rf"\end{{{kind}}}", "",
    ])  # fmt: skip


def tex(text: str, *, breaks: bool = False) -> str:
    """Return Markdown of one line as LaTeX; with `breaks` a line may end inside of an address.

    A character that pdflatex does not know by itself becomes a question mark.
    """
    parts = CITED.split(text)
    parts[::2] = [CODE.sub(r"\\texttt{\1}", "".join(map(_char, part))) for part in parts[::2]]
    if breaks:
        parts[::2] = [BREAK.sub(r"\g<0>\\allowbreak{}", part) for part in parts[::2]]
    parts[1::2] = [r"\cite{" + keys[1:].replace("; @", ",") + "}" for keys in parts[1::2]]
    return "".join(parts).replace(r" \cite", r"~\cite")


def paragraphs(written: Sequence[tuple[str, str]]) -> str:
    """Return pairs of a heading and a text as paragraphs of Markdown."""
    return "\n\n".join(f"**{heading}.** {text}" for heading, text in written) + "\n"


def tex_paragraphs(written: Sequence[tuple[str, str]]) -> str:
    """Return pairs of a heading and a text as paragraphs of LaTeX."""
    each = [rf"\paragraph{{{tex(heading)}.}} {tex(text, breaks=True)}" for heading, text in written]
    return "\n\n".join([r"\begingroup\sloppy", *each, r"\endgroup"]) + "\n"


def document(view: StudyView, tables: Sequence[Table], figures: Sequence[Figure]) -> str:
    """Return a LaTeX document of all that a report has for papers, from the files beside it."""
    shown = [line for figure in figures for line in _shown(*figure)]
    cited = [r"\bibliographystyle{plain}", r"\bibliography{references}"]
    works = cited if view.setting.works else []
    return "\n".join([
        r"\documentclass[twocolumn]{article}", r"\usepackage[margin=0.75in]{geometry}",
        r"\usepackage{array,booktabs,graphicx}",
        r"\extrafloats{500}\maxdeadcycles=1000\raggedbottom", rf"\title{{{tex(view.title)}}}",
        r"\author{}\date{}", r"\begin{document}", r"\maketitle", r"\section{Methods}",
        r"\input{methods}", *works, r"\clearpage", r"\section{Tables and figures}",
        *[rf"\input{{tables/{table[0]}}}" for table in tables], *shown, r"\end{document}", "",
    ])  # fmt: skip


def _shown(name: str, caption: str, wide: bool) -> list[str]:
    kind = "figure*" if wide else "figure"
    return [
        rf"\begin{{{kind}}}", r"  \centering", rf"  \includegraphics{{figures/{name}.pdf}}",
        rf"  \caption{{{tex(caption)}}}", rf"  \label{{fig:{name}}}", rf"\end{{{kind}}}",
    ]  # fmt: skip


def _broken(title: str, width: int) -> list[str]:
    """Break a title at its blanks into lines no longer than `width`, SHORT or its longest word."""
    longest = max([width, SHORT, *map(len, title.split())])
    return textwrap.wrap(title, longest, break_on_hyphens=False) or [""]


def _heading(lines: list[str], stands: bool, side: str) -> str:
    if stands:
        return rf"\rotatebox{{90}}{{{tex(' '.join(lines))}}}"
    text = r"\\".join(map(tex, lines))
    return rf"\shortstack[{side}]{{{text}}}" if len(lines) > 1 else text


def _length(text: str) -> int:
    """Return about how many characters a text has when works are cited by their numbers."""
    return len(CITED.sub(lambda cited: "[" + 4 * "0" * cited[1].count("@"), text))


def _side(width: int, *, first: bool) -> str:
    if width > LONG:
        return r">{\raggedright\arraybackslash}p{22em}"
    return "l" if first else "r"


def _char(char: str) -> str:
    decomposed = unicodedata.normalize("NFD", char)
    accented = decomposed[0].isascii() and set(decomposed[1:]) <= ACCENTS
    return SPECIAL.get(char, char if accented or char in KNOWN else "?")
