"""A page and its parts: text, tables, charts and pictures, all inside one HTML file."""

import base64
import io
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from utils.files import atomic_path
from utils.plots import DPI

# Letters stay letters: they can be searched and copied, and a chart takes the font of the page.
SVG_STYLE = {"svg.fonttype": "none", "font.family": "sans-serif"}


@dataclass(frozen=True)
class Section:
    """A part of the page under a title of its own.

    note: a sentence or two on how to read it.
    parts: HTML, as the functions below make it.
    folded: whether the reader opens it with a click.
    """

    title: str
    parts: list[Markup]
    note: str = ""
    folded: bool = False


def write_page(path: Path | str, title: str, facts: dict, sections: list[Section]) -> Path:
    """Write a page, whole or not at all, and return its path; sections without parts are left out.

    Args:
        facts: names and values that stand below the title, in a line.
    """
    environment = Environment(loader=PackageLoader("report"), autoescape=select_autoescape(), trim_blocks=True)
    shown = [section for section in sections if section.parts]
    html = environment.get_template("page.html").render(title=title, facts=facts, sections=shown)
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return Path(path)


# --- parts ---------------------------------------------------------------------------------------------


def chart(figure: Figure, label: str) -> Markup:
    """A figure as a drawing that stays sharp at any size; `label` tells what it shows to those who cannot see it."""
    stream = io.StringIO()
    with rc_context(SVG_STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    figure.clear()
    drawing = stream.getvalue()
    drawing = drawing[drawing.index("<svg") :]  # a page has a head of its own
    return Markup(f'<figure class="chart" role="img" aria-label="{escape(label)}">{drawing}</figure>')


def picture(source: Figure | Path, label: str, small: bool = False) -> Markup:
    """A figure with scans, or a picture file, as PNG; the width of the page bounds it, or a third if it is `small`."""
    if isinstance(source, Figure):
        stream = io.BytesIO()
        source.savefig(stream, format="png", dpi=DPI)
        source.clear()
        content = stream.getvalue()
    else:
        content = source.read_bytes()
    code = base64.b64encode(content).decode()
    size = ' class="small"' if small else ""
    return Markup(f'<figure{size}><img alt="{escape(label)}" src="data:image/png;base64,{code}"></figure>')


def table(frame: pd.DataFrame, digits: int = 3) -> Markup:
    """A table; undefined numbers are empty cells."""
    html = frame.to_html(index=False, na_rep="", float_format=f"{{:.{digits}f}}".format, border=0, classes="scores")
    return Markup(f'<div class="wide">{html}</div>')


def text(words: str) -> Markup:
    return Markup(f"<p>{escape(words)}</p>")


def listing(values: dict) -> Markup:
    """Names and values, a line each."""
    rows = "".join(f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in values.items())
    return Markup(f'<table class="listing">{rows}</table>')


def links(pages: dict[str, str]) -> Markup:
    """Links to other pages by their names; the paths are relative to this one."""
    items = "".join(f'<li><a href="{escape(path)}">{escape(name)}</a></li>' for name, path in pages.items())
    return Markup(f"<ul>{items}</ul>")
