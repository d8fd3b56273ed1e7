"""Figures as SVG text for a page: without external resources, and reproducible byte by byte.

Colours are those of Okabe & Ito, which most colour-blind readers can distinguish. Classes also differ in marker shape, so that
they stay distinct with more classes than colours, and in black and white.
"""

import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from latentlab.report.items import Figure

BLUE, ORANGE, GREEN, RED, SKY, PURPLE, GREY, YELLOW = COLORS = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#6B6B6B", "#C9BC1F"),
)
"""Colours of Okabe & Ito, with grey instead of black, which is the colour of text, and a darker yellow, visible on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")
INK = "#1b1b1b"
BAND, EDGE = "#cfe3f1", "#8fbcdc"
HEAVY = 600
"""Number of marks above which they are drawn as pixels inside the SVG."""
MOST_CLASSES = 12
OTHER = "other"

STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "white",
    "axes.axisbelow": True,
    "axes.edgecolor": "#8a8a8a",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.prop_cycle": cycler(color=COLORS),
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    "svg.hashsalt": "latentlab",
    "svg.image_inline": True,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": INK,
    "ytick.labelsize": 8.5,
}


@contextmanager
def style() -> Iterator[None]:
    """Use the common settings of all figures inside the block; the user's settings have no effect and are restored afterwards."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the browser substitutes glyphs that the font lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
        yield


def draw_figure(
    name: str, caption: str, alt: str, size: tuple[float, float], draw: Callable[[Any], None], *, tight: bool = True
) -> Figure:
    """Draw a figure by a function of an empty matplotlib figure.

    Args:
        name: Name of the figure, an ASCII word.
        caption: Caption below it.
        alt: Text alternative for screen readers.
        size: Width and height in inches; 10 is the width of the page.
        draw: Draws into the figure.
        tight: Whether matplotlib's constrained layout is used.
    """
    with style():
        canvas = Canvas(figsize=size, layout="constrained" if tight else None)
        draw(canvas)
        return Figure(name, caption, alt, svg(canvas, name, alt))


def svg(canvas: Any, name: str, alt: str) -> str:
    """Convert a matplotlib figure to an `<svg>` element without header and metadata, and with ids prefixed by the name."""
    stream, onto = io.StringIO(), FigureCanvasSVG(canvas)
    if (layout := canvas.get_layout_engine()) is not None:  # `savefig` would draw the figure a second time for the layout
        canvas.dpi = onto.fixed_dpi
        layout.execute(canvas)
        canvas.set_layout_engine("none")
    canvas.dpi = matplotlib.rcParams["savefig.dpi"]
    onto.print_svg(stream, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = re.sub(r"<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    images = itertools.count()  # equal pictures have equal ids
    text = re.sub(r'\bid="image[0-9a-f]{10}"', lambda _: f'id="image{next(images)}"', text)
    numbers: dict[str, str] = {}
    text = re.sub(r"<[^>]*>", lambda tag: _prefixed_ids(tag.group(), name, numbers), text)
    width, height = (float(v) for v in re.findall(r'(?:width|height)="([\d.]+)pt"', text[:600])[:2])
    open_tag = f'<svg class="drawing" role="img" aria-label="{_attribute(alt)}" viewBox="0 0 {width:g} {height:g}" style="width:'
    open_tag += f'{width * 4 / 3:.0f}px">'
    return open_tag + re.sub(r"\s*\n\s*", "\n", text[text.index(">", text.index("<svg")) + 1 :]).strip()


HASHED = re.compile(r'(\bid="|href="#|url\(#)([A-Za-z])[0-9a-f]{10}(?=["\)])')


def _prefixed_ids(tag: str, name: str, numbers: dict[str, str]) -> str:
    """Prefix the ids in a tag by the figure's name, and number the ids of clips and marks.

    Matplotlib derives these ids from coordinates, whose last digits differ between runs of the layout.
    """

    def counted(match: re.Match[str]) -> str:
        before = match.group()[len(match.group(1)) :]
        return match.group(1) + numbers.setdefault(before, f"{match.group(2)}{len(numbers)}")

    tag = HASHED.sub(counted, tag)
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'href="#', f'href="#{name}-', tag)
    return re.sub(r"url\(#", f"url(#{name}-", tag)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


# -- classes


class Classes:
    """Colour and shape of each unit by its label.

    Args:
        labels: Label of each unit; None if there are none.
        n_units: Number of units.
    """

    def __init__(self, labels: np.ndarray | None, n_units: int) -> None:
        if labels is None:
            self.names: list[str] = []
            self.codes = np.zeros(n_units, dtype=int)
            return
        names, counts = np.unique(labels, return_counts=True)
        kept = set(names.tolist())
        if len(names) > MOST_CLASSES:
            kept = set(names[np.argsort(-counts, kind="stable")[: MOST_CLASSES - 1]].tolist())
        self.names = sorted(kept, key=_natural) + ([OTHER] if len(kept) < len(names) else [])
        where = {label: i for i, label in enumerate(self.names)}
        self.codes = np.array([where[label] if label in kept else len(self.names) - 1 for label in labels.tolist()])

    def color(self, code: int) -> str:
        """Return the colour of a class."""
        return COLORS[code % len(COLORS)]

    def marker(self, code: int) -> str:
        """Return the marker of a class."""
        return MARKERS[code % len(MARKERS)]

    def scatter(self, axes: Any, x: np.ndarray, y: np.ndarray, *, size: float = 14.0, alpha: float = 0.85) -> None:
        """Draw the units as points."""
        for code in np.unique(self.codes).tolist():
            chosen = self.codes == code
            axes.scatter(
                *(x[chosen], y[chosen]),
                **{"s": size, "c": self.color(code), "marker": self.marker(code), "alpha": alpha, "linewidths": 0},
                rasterized=len(x) > HEAVY,
                label=self.names[code] if self.names else None,
            )

    def legend(self, canvas: Any, axes: Any) -> None:
        """Add a legend with the names, if there are any, beside the axes."""
        if self.names:
            handles, names = axes.get_legend_handles_labels()
            canvas.legend(handles, names, loc="outside right upper", title="label", markerscale=1.5)


def _natural(label: str) -> tuple[bool, float, str]:
    try:
        return False, float(label), label
    except ValueError:
        return True, 0.0, label


def shortened(text: str, most: int = 28) -> str:
    """Truncate a text for use on an axis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def feature(name: str, most: int = 28) -> str:
    """Return a feature's name for use on an axis; a number is prefixed, since it would look like a value.

    Example:
        >>> feature("0"), feature("proline")
        ('feature 0', 'proline')
    """
    return shortened(f"feature {name}" if name.isdigit() else name, most)


def log_axis(axis: Any) -> None:
    """Write the ticks of a logarithmic axis as plain numbers, since formulas are not typeset in figures."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def grid(n: int, across: int) -> tuple[int, int]:
    """Return the numbers of rows and columns for n panels."""
    columns = max(1, min(n, across))
    return -(-n // columns), columns


def panels(canvas: Any, n: int, across: int, **options: Any) -> Sequence[Any]:
    """Create n axes in rows of at most `across`; the remaining cells are empty."""
    rows, columns = grid(n, across)
    axes = np.ravel(canvas.subplots(rows, columns, squeeze=False, **options))
    for empty in axes[n:]:
        empty.set_axis_off()
    return list(axes[:n])
