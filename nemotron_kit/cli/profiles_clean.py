"""`nemotron profiles clean NAME`: removes from a profile's target what launches have left there and no run needs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from nemotron_kit.cli.grid import print_json, print_table, write_lines
from nemotron_kit.cli.toolargs import ToolParser, short_span, span
from nemotron_kit.errors import NemotronError
from nemotron_kit.plan.profiles import effective_profile

_SAYS = """\
Removes from a profile's target the code, kits and repositories that launches left there, that have not been used for
a while, and that no unfinished run names. Runs and artifacts stay: nemotron runs rm, nemotron artifacts."""


def main(argv: Sequence[str]) -> int:
    """The words after `nemotron profiles clean`. Unreachable (3) when the target does not answer."""
    parser = ToolParser("nemotron profiles clean", _SAYS)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--unused", type=span, default=timedelta(days=30), metavar="SPAN", help="unused for so long: 12h, 30d (default)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse(argv)
    if options is None:
        return 0
    from nemotron_kit.execution.reach import reach_for

    reach = reach_for(vars(effective_profile(options.name).config))
    unused = options.unused.total_seconds()
    found, _ = reach.call("clean", root=reach.root, unused_seconds=unused, remove=not options.dry_run)
    kept = [entry for entry in found if "error" in entry]
    if options.json:
        print_json(found)
        return 1 if kept else 0
    found = [entry for entry in found if "error" not in entry]
    if found:
        print_table(("WHAT", "MB", "PATH"), [(f["what"], f"{f['bytes'] / 1e6:.1f}", f["path"]) for f in found])
    size, verb = sum(f["bytes"] for f in found) / 1e6, "would go" if options.dry_run else "removed"
    write_lines([f"{len(found)} {verb}, {size:.1f} MB: unused for {short_span(unused)} and named by no unfinished run"])
    if kept:
        first, *more = (f"{entry['path']}: {entry['error']}." for entry in kept)
        raise NemotronError(f"{len(kept)} could not be removed: {first}", hint="\n".join(more) or None)
    return 0
