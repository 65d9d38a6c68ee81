"""Plots, as SVG for a page or as a PNG file. Matplotlib is imported when the first one is drawn."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE = 10.0  # An axis is logarithmic if its largest value is more than this many times the smallest.
_DASHED: dict[str, Any] = {"color": "grey", "linewidth": 1, "linestyle": "--"}
COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
)  # fmt: skip
"""Colours of models, by their order."""
Points = Sequence[tuple[int | float, float]]


def svg(figure: "Figure") -> str:
    """A figure as an SVG element: equal figures give equal text."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "pocketdiff", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def png(figure: "Figure") -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def lines(
    panels: Sequence[tuple[str, Mapping[str, Points]]], across: str, marks: Mapping[str, float] | None = None
) -> "Figure":
    """Curves in panels side by side, with one legend.

    Args:
        panels: The title of each panel and its curves by name.
        across: Label of the x axis.
        marks: The y of a dashed line, by the title of its panel.
    """
    figure, axes = _panels([title for title, _ in panels], across)
    for axis, (title, curves) in zip(axes, panels, strict=True):
        for name, points in curves.items():
            axis.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3.5, linewidth=1.4, label=name)
        if marks and title in marks:
            axis.axhline(marks[title], **_DASHED, label="real images")
        if all(isinstance(x, int) for points in curves.values() for x, _ in points):
            axis.locator_params("x", integer=True)
        if _is_wide([y for points in curves.values() for _, y in points]):
            axis.set_yscale("log")
    if len(axes[0].lines) > 1:
        axes[0].legend(fontsize="small", frameon=False)
    return figure


def shares_below(curves: Mapping[str, Points], across: str, mark: float) -> "Figure":
    """Cumulative distributions by name: points (x, share of the values up to x). ``mark`` is the x of a dashed line."""
    figure, (axis,) = _panels(["share of the images"], across)
    for name, points in curves.items():
        axis.plot(*zip(*points, strict=True), linewidth=1.4, label=name)
    axis.axvline(mark, **_DASHED)
    axis.set_yscale("log")
    axis.legend(fontsize="small", frameon=False)
    return figure


def pareto_front(
    points: Mapping[str, tuple[float, float, float, float]], best: Sequence[str], colours: Mapping[str, str],
    across: str, up: str, mark: float | None = None,
) -> "Figure":  # fmt: skip
    """Named points with error bars, and a line through the Pareto front.

    Args:
        points: By name: x, y, and the interval of y, low and high.
        best: The names of the Pareto front, in its order.
        colours: The colour of each name.
        across: Label of the x axis.
        up: Title: the y axis.
        mark: The y of a dashed line.
    """
    figure, (axis,) = _panels([up], across)
    for name, (x, y, low, high) in points.items():
        style: dict[str, Any] = {"marker": "o", "markersize": 5, "capsize": 3, "linestyle": "none"}
        axis.errorbar(x, y, [[y - low], [high - y]], color=colours[name], **style)
    axis.plot(*zip(*(points[name][:2] for name in best), strict=True), color="grey", linewidth=1, zorder=0)
    if mark is not None:
        axis.axhline(mark, **_DASHED)
    xs, ys = [point[0] for point in points.values()], [y for point in points.values() for y in point[1::2]]
    for name, places in (("x", xs), ("y", ys)):
        axis.set(**{f"{name}scale": "log"} if _is_wide(places) else {f"{name}lim": (0, 1.3 * max(places) or 1.0)})
        getattr(axis, f"{name}axis").set_major_formatter("{x:g}")
    axis.margins(x=0.3, y=0.15)
    for number, (name, (x, y, *_)) in enumerate(sorted(points.items(), key=lambda point: point[1])):
        # Towards the middle, and alternately below and above, so that long names have space and do not overlap.
        left = (axis.transScale + axis.transLimits).transform((x, y))[0] > 0.5
        beside = (-6 if left else 6, -12 if number % 2 else 5)
        words: dict[str, Any] = {"ha": "right" if left else "left", "fontsize": "small", "parse_math": False}
        axis.annotate(name, (x, y), beside, textcoords="offset points", **words)
    return figure


def _is_wide(places: Sequence[float]) -> bool:
    return 1e-30 < _WIDE * min(places) < max(places)  # Smaller numbers are no places on a logarithmic axis.


def _panels(titles: Sequence[str], across: str) -> "tuple[Figure, Sequence[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(titles), 3.2), layout="constrained")
    axes = [figure.add_subplot(1, len(titles), i + 1, title=title, xlabel=across) for i, title in enumerate(titles)]
    for axis in axes:
        axis.title.set_fontsize("medium")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
