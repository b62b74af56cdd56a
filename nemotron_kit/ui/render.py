"""Pages as HTML: the templates, in which every text is escaped, masked and freed of control characters."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nemotron_kit.cli.runs.list import clock
from nemotron_kit.errors import NemotronError, printable
from nemotron_kit.masking import mask
from nemotron_kit.ui.page import Links, WebPage

_HERE = Path(__file__).parent
STATIC = _HERE / "static"
THEMES = ("light", "dark")


def csp_hash(text: str) -> str:
    """The source expression by which a content security policy allows exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


STYLE_HASH = csp_hash("")


def plotly_js() -> Path:
    """plotly.js, as the Python package plotly ships it (that package is not imported)."""
    spec = importlib.util.find_spec("plotly")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        file = Path(folder) / "package_data" / "plotly.min.js"
        if file.is_file():
            return file
    raise NemotronError("plotly ships no package_data/plotly.min.js.", hint="pip install 'nemotron-kit[ui]'")


def render(page: WebPage, links: Links, *, theme: str = "") -> str:
    """The whole HTML document of a page."""
    chosen = theme if theme in THEMES else ""
    known = {"page": page, "links": links, "theme": chosen, "style_mark": style_mark() if page.figures else ""}
    return _templates().get_template("page.html").render(**known, **page.data)


def encoded(html: str) -> bytes:
    r"""A document in UTF-8. A record can hold half a character (\ud800 in a metric's name): that is shown so."""
    return html.encode(errors="backslashreplace")


def prepare() -> None:
    """Compile the templates of the first view, before anybody waits for it."""
    for name in ("page.html", "macros.html", "runs.html"):
        _templates().get_template(name)


def render_file(pages: list[WebPage], links: Links) -> str:
    """One HTML document with all the pages, and all that they need; ui.js and ui.css are its only script and style."""
    script, style = (STATIC.joinpath(name).read_text(encoding="utf-8") for name in ("ui.js", "ui.css"))
    drawn = any(page.figures for page in pages)
    drawn_with = f" {csp_hash(plotly_text())}" if drawn else ""
    policy = (
        f"default-src 'none'; script-src {csp_hash(script)}{drawn_with}; "
        f"style-src {csp_hash(style)} {STYLE_HASH}; style-src-attr 'unsafe-hashes' {STYLE_HASH}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    templates = _templates()
    bodies = [templates.get_template(page.template).render(page=page, links=links, **page.data) for page in pages]
    return templates.get_template("export.html").render(
        pages=[(page, Markup(body)) for page, body in zip(pages, bodies, strict=True)],  # noqa: S704 — escaped there
        links=links,
        policy=policy,
        style_mark=style_mark() if drawn else "",
        script=Markup(script),  # noqa: S704 — our own files
        style=Markup(style),  # noqa: S704
        plotly=Markup(plotly_text()) if drawn else "",  # noqa: S704
    )


@cache
def style_mark() -> str:
    """The id of the style element that plotly.js adds for its maps, unless there is an element with this id: the policy
    would refuse it, and say so, and no page has a map. "" if it adds none."""
    found = re.search(r'getElementById\("([0-9a-f]{64})"\)', plotly_text())
    return found[1] if found else ""


@cache
def plotly_text() -> str:
    """plotly.js as a text that can be put into a script element."""
    text = plotly_js().read_text(encoding="utf-8")
    if "</script" in text.lower():  # it would end the element that holds it
        text = text.replace("</script", "<\\/script").replace("</SCRIPT", "<\\/SCRIPT")
    return text


@cache
def _templates() -> Environment:
    found = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_final,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["number"] = lambda value: "" if value is None else f"{value:.5g}"
    found.filters["figure"] = lambda figure: Markup(figure.to_json())  # noqa: S704 — JSON without < > &
    found.filters |= {"clock": clock, "size": _size}
    return found


def _final(value: Any) -> Any:
    """Every value that a template prints: texts with secrets masked, and with control characters and bidirectional
    overrides made visible. It is escaped afterwards."""
    if value is None:
        return ""
    if isinstance(value, Markup):
        return value
    return printable(mask(value)) if isinstance(value, str) else value


def _size(count: int | None) -> str:
    if count is None:
        return ""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
