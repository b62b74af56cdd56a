"""`nemotron profiles check NAME`: whether the profile's target is as a launch needs it."""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_kit.cli.grid import print_json, print_table
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.plan.profiles import effective_profile

_STYLES = {"ok": "green", "warning": "yellow", "wrong": "bold red", "unreachable": "magenta"}
_EXIT_CODES = {"ok": 0, "warning": 0, "wrong": 1, "unreachable": 3}


def main(argv: Sequence[str]) -> int:
    """The words after `nemotron profiles check`: 0 when all is well, 1 when something is wrong, 3 unreachable."""
    parser = ToolParser("nemotron profiles check", "Connect to a profile's target and report. Nothing is submitted.")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse(argv)
    if options is None:
        return 0
    from nemotron_kit.execution.checks import check_profile

    findings = list(check_profile(effective_profile(options.name).config))
    if options.json:
        print_json([vars(finding) for finding in findings])
    else:
        rows = [(f.what, f.state, f.detail) for f in findings]
        print_table(("WHAT", "STATE", "SEEN"), rows, styles=_STYLES)
    return max((_EXIT_CODES[finding.state] for finding in findings), default=0)
