"""Help pages, made from the index: what a command does, its options and inputs, examples, and next steps."""

from __future__ import annotations

import sys

from nemotron_kit.cli import tree
from nemotron_kit.cli.options import LABELS, LAUNCHER, NEMOTRON, PREFIXES
from nemotron_kit.cli.output import cells, colour, width, wrap
from nemotron_kit.cli.tools import TOOLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from nemotron_kit.cli.tree import Index, Node

    Rows = Iterable[tuple[str, str]]

_ROOT_OPTIONS = [("-h, --help", "show this help; after a command or group, its help"), ("--version", "")]


class Paint:
    """Wraps text in colours, or leaves it as it is when `on` is false."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def heading(self, text: str) -> str:
        """Bold, for titles."""
        return self._in("1", text)

    def name(self, text: str) -> str:
        """Cyan, for what can be typed."""
        return self._in("36", text)

    def quiet(self, text: str) -> str:
        """Dim, for additions."""
        return self._in("2", text)

    def bad(self, text: str) -> str:
        """Red, for errors."""
        return self._in("31", text)

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.on and text else text


class Page:
    """A page of text: sections, each a heading and lines."""

    def __init__(self, columns: int, paint: Paint) -> None:
        self.columns, self.paint = columns, paint
        self.parts: list[str] = []

    def text(self, *lines: str) -> None:
        """Add a paragraph; each line is wrapped."""
        self.parts.append("\n".join(line for text in lines for line in wrap(text, self.columns)))

    def section(self, heading: str, rows: Rows) -> None:
        """Add a heading and a table of (name, description); nothing if there are no rows."""
        lines = table(rows, self.columns, self.paint)
        if lines:
            self.parts.append("\n".join([self.paint.heading(heading), *lines]))

    def lines(self, heading: str, lines: Sequence[str]) -> None:
        """Add a heading and lines that are not wrapped, such as commands to copy."""
        self.parts.append("\n".join([self.paint.heading(heading), *(f"  {line}" for line in lines)]))

    def __str__(self) -> str:
        return "\n\n".join(self.parts) + "\n"


def table(rows: Rows, columns: int, paint: Paint) -> list[str]:
    """Names on the left, descriptions on the right; a long name has its own line."""
    rows, indent = list(rows), "  "
    left = min(max((cells(name) for name, _ in rows), default=0), columns * 2 // 5)
    lines = []
    for name, text in rows:
        first, *more = wrap(text, max(columns - left - len(indent) - 2, 20))
        if cells(name) > left:
            lines.append(indent + paint.name(name))
            more = [first, *more] if first else more
        else:
            lines.append(f"{indent}{paint.name(name)}{' ' * (left - cells(name))}  {first}".rstrip())
        lines += [f"{indent}{' ' * left}  {line}" for line in more]
    return lines


def show(index: Index, path: tuple[str, ...], *, asked: bool = True, root: tuple[str, ...] = ()) -> int:
    """Print the page of the node at `path`; returns the exit code. For a group in place of a command that is 2, and the
    page goes to standard error."""
    stream = sys.stdout if asked else sys.stderr
    page = Page(width(stream), Paint(colour(stream)))
    draw(page, index, path, root, tree.program(root))
    if not asked:
        stream.write("Which command?\n\n")
    encoding = stream.encoding or "utf-8"
    stream.write(str(page).encode(encoding, "replace").decode(encoding))  # an … on a latin-1 terminal is a ?
    stream.flush()
    return 0 if asked else 2


def draw(page: Page, index: Index, path: tuple[str, ...], root: tuple[str, ...], prog: str) -> None:
    """Write the help page of the node at `path`; the program's name already contains its first names, `root`."""
    node = tree.find(index, path) or index.root
    prefix = " ".join((prog, *path[len(root) :]))
    if not path:
        _top(page, index, prefix)
    elif tree.is_group(node):
        _group(page, node, prefix)
    else:
        _command(page, node, index.detail(node), prefix)


def _top(page: Page, index: Index, prefix: str) -> None:
    recipes = index.root["children"]
    page.text(f"usage: {prefix} RECIPE COMMAND [options] [key=value …]")
    page.text("Launches training recipes on this machine, or on a cluster that env.toml describes.")
    page.section("recipes", [(name, node["description"]) for name, node in recipes.items()])
    page.section("broken", sorted(index.broken.items()))
    page.section("commands", [(name, tool.summary) for name, tool in TOOLS.items()])
    page.section("options", _ROOT_OPTIONS)
    first = next((leaf for leaf in tree.leaves(index.root) if "broken" not in leaf), None)
    if first is not None:
        command = " ".join((prefix, *first["path"]))
        page.lines("next", [f"{prefix} {first['path'][0]} --help", f"{command} --help", f"{command} --dry-run"])


def _group(page: Page, node: Node, prefix: str) -> None:
    page.text(f"usage: {prefix} COMMAND [options] [key=value …]")
    if node["description"]:
        page.text(node["description"])
    rows = []
    for leaf in tree.leaves(node):
        aliases = f" (also: {', '.join(leaf['aliases'])})" if leaf.get("aliases") else ""
        text = f"broken: {leaf['broken']}" if "broken" in leaf else leaf["description"] + aliases
        rows.append((" ".join(leaf["path"][len(node["path"]) :]), text))
    page.section("commands", rows)
    first = next((leaf for leaf in tree.leaves(node) if "broken" not in leaf), None)
    if first is not None:
        command = " ".join((prefix, *first["path"][len(node["path"]) :]))
        page.lines("next", [f"{command} --help", f"{command} --dry-run"])


def _command(page: Page, leaf: Node, detail: Node, prefix: str) -> None:
    fields = detail["fields"]
    positional = [row["name"].upper() for row in fields if row.get("positional")]
    what, key = ("NAME", "STAGE.key") if "stages" in detail else ("NAME|PATH", "key")
    sent = () if detail.get("interactive") else ("[-r PROFILE | -b PROFILE]",)
    page.text(" ".join(("usage:", prefix, *positional, f"[-c {what}]", *sent, f"[options] [{key}=value …]")))
    if leaf["description"]:
        page.text(leaf["description"])
    if "broken" in leaf:
        page.text(page.paint.bad(f"broken: {leaf['broken']}"))
        return
    if "stages" in detail:
        _pipeline(page, detail, prefix)
        return
    page.section("options", _options(detail))
    if not detail.get("interactive"):
        settings = [(f"hydra.launcher.{name}={value}", text) for name, (value, text) in LAUNCHER.items()]
        page.section("sweeps (-m hydra/launcher=nemo_run)", settings)
    rows = []
    for slot in detail["artifacts"]:
        fills = ", ".join(f"{target} from {source or 'path'}" for source, target in slot["mappings"].items())
        default = slot["default"] or "none unless given"
        rows.append((f"--art.{slot['slot']}", f"{default}{f' (fills {fills})' if fills else ''}"))
    page.section("artifacts it reads (--art.NAME REF uses another)", rows)
    mapped = {target: slot["slot"] for slot in detail["artifacts"] for target in slot["mappings"].values()}
    page.section("config (as --field VALUE or as field=VALUE)", [_field(row, mapped) for row in fields])
    if detail["configs"]:
        page.lines("configs for -c", [f"{', '.join(detail['configs'])}   ({detail['config_folder']})"])
    if detail["groups"]:
        rows = [(f"{group}=CHOICE", ", ".join(choices)) for group, choices in detail["groups"].items()]
        page.section("config groups (files in the config folder that set a part of it)", rows)
    if detail["produces"]:
        page.text(f"It saves {', '.join(detail['produces'])}.")
    page.lines("examples", _examples(detail, " ".join((prefix, *positional))))
    if detail.get("interactive"):
        page.text("It runs on this terminal, takes no profile, and leaves no record.")
        return
    page.lines(
        "next",
        ["nemotron runs              list the runs", "nemotron profiles          list the profiles it can run on"],
    )


def _pipeline(page: Page, detail: Node, prefix: str) -> None:
    """The part of the page for a pipeline: its stages in order, with what they read and save. It has no config."""
    rows = []
    for stage in detail["stages"]:
        reads = [f"{slot}: {default}{f' of {maker}' if maker else ''}" for slot, default, maker in stage["reads"]]
        parts = [f"reads {', '.join(reads)}"] if reads else []
        parts += [f"saves {', '.join(stage['saves'])}"] if stage["saves"] else []
        rows.append((" ".join(stage["path"][1:]), "; ".join(parts)))
    page.section("stages, in this order", rows)
    page.text(
        "A stage of which nothing has changed since it last succeeded is skipped; one that fails ends the pipeline."
    )
    chosen = [row for row in detail["fields"] if row["kind"] != "dict"]
    page.section("which stages", [(f"--{row['name']} STAGE", row["help"]) for row in chosen])
    page.section("options", [row for row in _options(detail) if not row[0].strip().startswith(_NOT_A_PIPELINES)])
    first = detail["stages"][0]
    values = [(f"{stage['name']}.KEY=VALUE", f"as {' '.join(stage['path'])} KEY=VALUE") for stage in detail["stages"]]
    page.section("values of a stage", values)
    if detail["configs"]:
        page.lines("configs for -c, by this name in each stage", [", ".join(detail["configs"])])
    config = " -c tiny" if "tiny" in detail["configs"] else ""
    page.lines(
        "examples", [f"{prefix}{config} --dry-run", f"{prefix}{config}", f"{prefix}{config} --only {first['name']}"]
    )


_NOT_A_PIPELINES = ("-m", "--cfg", "--resolve", "--package", "--info", "--hydra-help")


# Options that do not apply to an interactive command: it runs in this process, and leaves no record.
_NOT_INTERACTIVE = ("run", "batch", "after", "multirun", "wandb", *LABELS)


def _options(detail: Node) -> Rows:
    left_out = _NOT_INTERACTIVE if detail.get("interactive") else ()
    fields = {row["name"] for row in detail.get("fields", ())}
    for option in NEMOTRON.options:
        if option.name in left_out or (option.name in LABELS and option.name in fields):
            continue
        yield (
            f"{option.short or '  '}{', ' if option.short else '  '}{option.flag} {option.metavar}".rstrip(),
            option.help,
        )
    for prefix, (metavar, text) in PREFIXES.items():
        if text and prefix not in left_out and (prefix != "art" or detail["artifacts"]):
            yield f"    --{prefix}.{metavar}", text


def _field(row: dict[str, Any], mapped: dict[str, str]) -> tuple[str, str]:
    name, value = row["name"], row["type"]
    flag = "--" + name.replace("_", "-")
    if name in NEMOTRON.long and name not in LABELS:  # --NAME is an option of nemotron: the field is set as key=value
        spelled = f"{name}={value}"
    elif row["kind"] == "dict":
        spelled = f"{flag}.KEY VALUE"
    elif row["kind"] == "bool":
        spelled = f"{flag}, --no-{flag[2:]}"
    else:
        spelled = f"{flag} {value}"
    if row.get("short"):
        spelled = f"{row['short']}, {spelled}"
    if row.get("positional"):
        spelled = f"{name.upper()} ({value})"
    default = f"[{row['default']}]" if row.get("default") not in (None, "null", "") else ""
    if name in mapped:
        default = f"[from artifact {mapped[name]}]"
    elif row.get("required"):
        default = "(required)"
    return spelled, f"{row.get('help', '')} {default}".strip()


def _examples(detail: Node, prefix: str) -> list[str]:
    """Three example command lines that work unchanged."""
    configs = detail["configs"]
    config = "tiny" if "tiny" in configs else next((name for name in configs if name != "default"), "")
    start = f"{prefix} -c {config}" if config else prefix
    settable = [
        row for row in detail["fields"] if row["kind"] in ("int", "float") and row.get("default", "null") != "null"
    ]
    setting = f" {settable[0]['name']}={settable[0]['default']}" if settable else ""
    return [f"{start} --dry-run", f"{start}{setting}", f"{start}{setting} --cfg job"]
