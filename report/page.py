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
from utils.plots import DPI, lay_out


@dataclass(frozen=True)
class Section:
    """A part of the page under a title; a `note` says how to read it, and if it is `folded` a click opens it."""

    title: str
    parts: list[Markup]
    note: str = ""
    folded: bool = False


def write_page(path: Path | str, title: str, facts: dict, sections: list[Section]) -> Path:
    """Write a page and return its path; `facts` stand below the title, sections without parts are left out."""
    environment = Environment(loader=PackageLoader("report"), autoescape=select_autoescape(), trim_blocks=True)
    shown = [section for section in sections if section.parts]
    html = environment.get_template("page.html").render(title=title, facts=facts, sections=shown)
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return Path(path)


def chart(figure: Figure, label: str) -> Markup:
    """A figure as a drawing that stays sharp at any size; `label` is for those who cannot see it."""
    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):  # text to search, in the page's own font
        lay_out(figure)
        figure.savefig(stream, format="svg", metadata={"Date": None})
    figure.clear()
    _, tag, drawing = stream.getvalue().partition("<svg")  # a page has a head of its own
    return Markup(f'<figure class="chart" role="img" aria-label="{escape(label)}">{tag}{drawing}</figure>')


def picture(source: Figure | Path, label: str, small: bool = False) -> Markup:
    """A figure with scans, or a picture file, as PNG, as wide as the page at most, or a third of it if `small`."""
    if isinstance(source, Figure):
        stream = io.BytesIO()
        lay_out(source)
        source.savefig(stream, format="png", dpi=DPI)
        source.clear()
    content = stream.getvalue() if isinstance(source, Figure) else source.read_bytes()
    code = base64.b64encode(content).decode()
    size = ' class="small"' if small else ""
    return Markup(f'<figure{size}><img alt="{escape(label)}" src="data:image/png;base64,{code}"></figure>')


def table(frame: pd.DataFrame) -> Markup:
    """A table; undefined numbers are empty cells."""
    html = frame.to_html(index=False, na_rep="", float_format="{:.3f}".format, border=0, classes="scores")
    return Markup(f'<div class="wide">{html}</div>')


def listing(values: dict) -> Markup:
    """Names and values, a line each."""
    rows = "".join(f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in values.items())
    return Markup(f'<table class="listing">{rows}</table>')
