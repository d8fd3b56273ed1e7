"""Formulas of docstrings as inline SVG, typeset by matplotlib without external resources."""

import re
from html import escape
from typing import Any

import matplotlib

from latentlab.report.figure import style
from latentlab.report.items import mathematics

SIZE = 15
"""Font size, in CSS pixels."""
_FORMULA = re.compile(r"(\$\$.+?\$\$|\$.+?\$|`[^`]+`)", re.DOTALL)


def typeset(text: str) -> str:
    r"""Convert a paragraph to HTML: formulas (between dollar signs) as SVG, words in backticks as code, the rest escaped."""
    return "".join(_piece(piece) for piece in _FORMULA.split(text))


def _piece(piece: str) -> str:
    if piece.startswith("`") and len(piece) > 2:
        return f"<code>{escape(piece[1:-1])}</code>"
    if not piece.startswith("$") or len(piece) < 3:
        return escape(mathematics(piece))
    tex = " ".join(piece.strip("$").split())
    image = _inline_svg(tex)
    if image is None:
        return f"<code>{escape(tex)}</code>"
    return f'<span class="display">{image}</span>' if piece.startswith("$$") else image


def _inline_svg(tex: str) -> str | None:
    """Return the formula as an inline `<svg>` on the text's baseline; None if matplotlib cannot typeset it."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import MathTextParser
    from matplotlib.textpath import TextPath

    with style():
        matplotlib.rcParams.update({"text.parse_math": True, "mathtext.fontset": "stix"})
        font = FontProperties(size=SIZE)
        try:
            path: Any = TextPath((0, 0), f"${tex}$", size=SIZE, prop=font, usetex=False)
            width, height, depth, *_ = MathTextParser("path").parse(f"${tex}$", dpi=72, prop=font)
        except (ValueError, RuntimeError):
            return None
    commands = []
    for points, code in path.iter_segments(curves=True, simplify=False):
        letter = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}[int(code)]
        flipped = [] if letter == "Z" else [float(v) * (-1 if i % 2 else 1) for i, v in enumerate(points)]
        commands.append(letter + " ".join(f"{v:.2f}" for v in flipped))
    box = f"0 {depth - height - 1:.2f} {width + 1:.2f} {height + 2:.2f}"
    place = f"width:{width + 1:.1f}px;height:{height + 2:.1f}px;vertical-align:{-depth - 1:.1f}px"
    opening = f'<svg class="formula" role="img" aria-label="{escape(tex)}" viewBox="{box}" style="{place}">'
    return f'{opening}<path d="{"".join(commands)}"/></svg>'
