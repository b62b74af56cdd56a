"""mkdocs.yml's hook: adds the reference, which is made from the code, and the repository's own pages to the site.

The pages that lie outside of docs/ (CONTRIBUTING.md and the like) become pages of the site, so that links to them lead
somewhere there as they do in a checkout. A page that would load anything from another host is an error of the build.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

import reference
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parents[2]
# In the repository → on the site. README.md stands for the first page.
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"(^```.*?^```$|``[^`]+``|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\ssrc=[\"']?(?:https?:)?//"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preconnect|preload|icon)\b)[^>]*\bhref=[\"']?(?:https?:)?//"
)
_log = logging.getLogger("mkdocs.hooks.docs")


def on_config(config: Any) -> Any:
    """An entry of the nav that is a folder stands for its pages, in order."""
    for section in config.nav:
        for entry in next(iter(section.values())) if isinstance(section, dict) else ():
            for title, folder in entry.items() if isinstance(entry, dict) else ():
                if isinstance(folder, str) and folder.endswith("/"):
                    entry[title] = sorted(f"{folder}{page.name}" for page in Path(config.docs_dir, folder).glob("*.md"))
    return config


def on_files(files: Files, config: Any) -> Files:
    for name, text in reference.pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    for source, target in OUTSIDE.items():
        if target != "index.md":
            text = (REPOSITORY / source).read_text(encoding="utf-8")
            files.append(File.generated(config, target, content=_relinked(text, source, target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    source = page.file.src_uri
    return markdown if page.file.generated_by else _relinked(markdown, f"docs/{source}", source)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    if found := LOADED.search(output):
        _log.warning("%s: loads something from another host: %s", page.file.src_uri, found[0])
    return output


def _relinked(text: str, source: str, target: str) -> str:
    """`text` of the file `source` of the repository, as the page `target` of the site: links to what has a page there
    lead to it, those to other files of the repository become their text."""

    def link(match: re.Match[str]) -> str:
        picture, words, whole = match.groups()
        name, mark, anchor = whole.partition("#")
        if re.match(r"[a-z]+:", whole) or not name:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        if path.startswith("docs/") and path.endswith((".md", ".png")):
            there = path.removeprefix("docs/")
        elif path in OUTSIDE or f"{path}/README.md" in OUTSIDE:
            there = OUTSIDE.get(path) or OUTSIDE[f"{path}/README.md"]
        else:
            return words
        start = posixpath.dirname(target) or "."
        return f"{picture}[{words}]({posixpath.relpath(there, start)}{mark}{anchor})"

    parts = _CODE.split(text)
    return "".join(part if at % 2 else _LINK.sub(link, part) for at, part in enumerate(parts))
