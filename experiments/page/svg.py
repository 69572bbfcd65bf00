"""Figures as SVG that stands inside a page: no names that clash, colours that suit light and dark."""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager

import matplotlib
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

DARK_PAPER = "#14171c"  # as in page.css
LEAST = 0.9  # pixels a point below which a figure scrolls rather than shrinks: its small print is 7 points
CONTRAST = 3.0  # least contrast of graphics with what is behind them (WCAG 2.2, 1.4.11)


def style() -> AbstractContextManager[None]:
    """Settings to make and draw a figure under.

    The background is the page's; letters are shapes, so that figures look the same whatever fonts a reader has; the
    $ of a name is no formula.
    """
    return matplotlib.rc_context(
        {"figure.facecolor": "none", "axes.facecolor": "none", "svg.fonttype": "path", "text.parse_math": False}
    )


def inline(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an <svg> element; `name` is unique in the page, `description` is read out in its place."""
    file = io.StringIO()
    # The salt makes the names of shapes the same in every run.
    with style(), matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    text = file.getvalue()
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None  # matplotlib always writes one
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    width = float(box[1].split()[2])
    # Points are 4/3 pixels; narrower pages than the least width scroll.
    sizes = f"--width: {width * 4 / 3:.0f}px; --least: {width * LEAST:.0f}px"
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box[1]}" role="img" aria-label="{escape(description)}" style="{sizes}">'
    )
    return Markup(opening + _adaptive(_private(body, name)))


def _private(body: str, name: str) -> str:
    """Drops the ids that nothing refers to, and puts the figure's name before the others."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    return re.sub(r'(url\(#|href="#)', rf"\1{name}-", body)


def _adaptive(body: str) -> str:
    """Black becomes the colour of text, white that of the page; what a dark page would swallow gets a lighter twin.

    White hairlines around blocks take the block's colour: on paper and in the dark thin blocks vanished under them.
    """

    def twin(match: re.Match[str]) -> str:
        what, colour = match[1], match[2].lower()
        if colour == "#000000":
            return f"{what}: currentColor"
        if colour == "#ffffff":
            return f"{what}: var(--paper)"
        lighter = lightened(colour)
        # The first of the two is for browsers without light-dark() (before 2024).
        return f"{what}: {colour}" + (f"; {what}: light-dark({colour}, {lighter})" if lighter != colour else "")

    body = re.sub(
        r"fill: (#\w{6}); stroke: #ffffff; stroke-width: 0\.[01]\d*", r"fill: \1; stroke: \1; stroke-width: 0.3", body
    )
    return re.sub(r"\b(fill|stroke): (#[0-9a-fA-F]{6})\b", twin, body)


def lightened(colour: str) -> str:
    """The colour mixed with just enough white, in steps of a tenth, to stand out on the dark page."""
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    for white in range(11):
        mixed = [round(channel + (255 - channel) * white / 10) for channel in channels]
        made = "#" + "".join(f"{channel:02x}" for channel in mixed)
        if contrast(made, DARK_PAPER) >= CONTRAST:
            return made
    raise AssertionError("white stands out on the dark page")


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    darker, lighter = sorted(_luminance(colour) for colour in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
