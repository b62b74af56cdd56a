"""The dashboard in a real browser: `nemotron ui` as a process, Debian's Chromium, hostile names, runs that are written
meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotron_kit.ui.export import export

from ..chromium import Browser, executable
from ..dashboard import append, falling, fill, launched, rows

pytest.importorskip("starlette")
pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium on this machine (apt-get install chromium)")

TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
READY = "!!document.querySelector('.plot[data-ready]')"


class Dashboard:
    """`nemotron ui` as a process, with a home of its own; this process writes its runs."""

    def __init__(self, folder: Path) -> None:
        self.runs = fill()
        command = [sys.executable, "-c", "import sys; from nemotron_kit.cli.main import nemotron; sys.exit(nemotron())"]
        self.process = subprocess.Popen([*command, "ui", "--json"], cwd=folder, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        text = ""
        while not text.endswith("}\n"):
            line = self.process.stdout.readline()
            assert line, f"it ended: {text}"
            text += line
        self.url = json.loads(text)["url"]
        self.base = self.url.partition("/?")[0]


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    folder = tmp_path_factory.mktemp("ui")
    (folder / "env.toml").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEMOTRON_HOME", str(folder / "home"))
        patch.setenv("NEMOTRON_ENV_FILE", str(folder / "env.toml"))
        found = Dashboard(folder)
        yield found
        found.process.send_signal(signal.SIGINT)
        assert found.process.wait(timeout=20) == 0  # Ctrl-C is how it ends


@pytest.fixture(scope="module")
def browser(dashboard: Dashboard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("chromium"))
    found.go(dashboard.url)
    assert found.value("location.href") == f"{dashboard.base}/"  # the key is not in the address any more
    yield found
    found.close()


@pytest.fixture(autouse=True)
def clean(browser: Browser, dashboard: Dashboard) -> Iterator[None]:
    """No test leaves an error, a refusal of the policy, a request to elsewhere, or a script of a name behind."""
    yield
    assert browser.errors == []
    assert [url for url in browser.asked if not url.startswith((dashboard.base, "data:", "file:", "blob:"))] == []
    assert browser.value("window.hacked") is None


def test_hostile_names_are_text(dashboard: Dashboard, browser: Browser) -> None:
    hostile = dashboard.runs["hostile"].id
    wide = launched("rl", code=1, error=f"ValueError: {'e' * 300}")
    browser.go(f"{dashboard.base}/runs/{wide.id}")
    assert browser.value(TOO_WIDE) == 0
    for url in ("/", f"/runs/{hostile}", f"/compare?run={hostile}&run={dashboard.runs['sft'].id}"):
        browser.go(dashboard.base + url)
        if url != "/":
            browser.wait(READY)
        assert "<script>window.hacked=1</script>" in browser.value("document.querySelector('main').innerText")
        assert browser.value("document.querySelectorAll('main img').length") == 0
        assert browser.value(TOO_WIDE) == 0


def test_a_page_follows_what_is_written(dashboard: Dashboard, browser: Browser) -> None:
    run = dashboard.runs["running"]
    browser.go(f"{dashboard.base}/runs/{run.id}")
    browser.wait(READY)
    log = "document.querySelector('pre.log').textContent"
    browser.wait(f"{log}.includes('step 0')")
    append(run, '{"step": 50, "loss": 0.125, "fresh": 3}\n', "metrics.jsonl")
    append(run, "step 50 <b>\n")
    browser.wait(f"{log}.includes('step 50 <b>')")
    browser.wait("document.querySelector('main').innerText.includes('0.125')")
    browser.wait("document.querySelectorAll('.plot[data-ready]').length === 3")  # a chart of the new metric
    plot = "document.querySelector('.plot[data-key=\"metric-loss\"]')"
    browser.wait(f"{plot}.data[0].y.at(-1) === 0.125")
    run.job().finish(0)
    browser.wait("document.querySelector('h1').innerText.includes('succeeded')")
    browser.wait("document.querySelector('pre.log').dataset.over === '1'")


def test_a_choice_outlasts_a_new_row(dashboard: Dashboard, browser: Browser) -> None:
    """The list refreshes itself; what is ticked and focused stays so."""
    browser.go(f"{dashboard.base}/")
    box = f"document.getElementById('c-{dashboard.runs['sft'].id}')"
    browser.value(f"{box}.click(), {box}.focus()")
    dashboard.runs["slow"].label(name="renamed meanwhile")
    browser.wait("document.querySelector('main').innerText.includes('renamed meanwhile')")
    assert browser.value(f"{box}.checked && document.activeElement === {box}") is True
    browser.value(f"{box}.closest('tr').querySelector('a').focus()")
    dashboard.runs["slow"].label(name="renamed again")
    browser.wait("document.querySelector('main').innerText.includes('renamed again')")
    assert browser.value(f"document.activeElement === {box}.closest('tr').querySelector('a')") is True


def test_the_first_metric_and_a_new_log_appear(dashboard: Dashboard, browser: Browser) -> None:
    run = launched("pretrain", [{}], code=None, log="starting\n")
    browser.go(f"{dashboard.base}/runs/{run.id}")
    browser.wait("document.querySelector('pre.log').innerText.includes('starting')")
    assert browser.value("document.querySelectorAll('.plot, pre.log').length") == 1
    append(run, '{"step": 0, "loss": 2.5}\n', "metrics.jsonl")
    browser.wait(READY)
    append(run, "rank one\n", "logs/rank1.log")
    browser.wait("document.querySelectorAll('pre.log').length === 2")
    run.job().finish(0)


def test_by_keyboard_alone(dashboard: Dashboard, browser: Browser) -> None:
    """Choose two runs with the space bar, overlay them with Enter; pages, filter and theme by their keys."""
    browser.go(f"{dashboard.base}/")
    browser.key("Tab")
    assert browser.value("document.activeElement.className") == "skip"
    for name in ("pretrain", "slow"):
        browser.value(f"document.getElementById('c-{dashboard.runs[name].id}').focus()")
        browser.key(" ")
    browser.value("document.querySelector('#choose button').focus()")
    browser.key("Enter")
    browser.wait(f"location.pathname === '/compare' && {READY}")
    assert browser.value("document.querySelector('.plot').data.length") == 2
    for key in "gl":
        browser.key(key)
    browser.wait("location.pathname === '/lineage'")
    browser.wait(READY)
    for key in "gr":
        browser.key(key)
    browser.wait("location.pathname === '/' && document.readyState === 'complete'")
    browser.key("/")
    assert browser.value("document.activeElement.id") == "filter"
    for key in "paper":
        browser.key(key)
    browser.key("Enter")
    browser.wait("location.search.includes('q=paper') && document.readyState === 'complete'")
    assert browser.value("document.querySelectorAll('tbody tr').length") == 1


def test_curves_over_the_time(dashboard: Dashboard, browser: Browser) -> None:
    """One choice for all curves of a page."""
    run = launched("sft", [{"metrics.jsonl": rows(falling(0.002, 10))}], code=None)
    browser.go(f"{dashboard.base}/compare?run={dashboard.runs['pretrain'].id}&run={run.id}")
    browser.wait(READY)
    plot = "document.querySelector('.plot[data-key=\"metric-loss\"]')"
    assert browser.value(f"{plot}.data[0].x.at(-1)") == 399
    browser.value("document.querySelector('.axis select').focus()")
    browser.key("t")  # the choice that begins with it: in a select, no key of the page's
    browser.wait(f"{plot}.data[0].x.at(-1) === 798 && {plot}.layout.xaxis.title.text.startsWith('seconds')")
    browser.value("document.querySelector('.axis select').blur()")
    append(run, '{"step": 51, "loss": 0.5, "_timestamp": 9e9}\n', "metrics.jsonl")
    browser.wait(f"{plot}.data[1].x.at(-1) > 1e9")  # kept over a refresh
    assert browser.value("document.documentElement.dataset.theme || 'light'") == "light"
    run.job().finish(0)


def test_light_and_dark(dashboard: Dashboard, browser: Browser) -> None:
    browser.go(f"{dashboard.base}/runs/{dashboard.runs['sweep'].id}")
    browser.wait(READY)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = browser.value(ground)
    browser.key("t")
    browser.wait(f"{ground} !== '{light}'")
    browser.go(f"{dashboard.base}/artifacts")  # kept, and in the page from its first byte
    assert browser.value("document.documentElement.dataset.theme") == "dark"
    browser.key("t")
    assert browser.value(ground) == light


def test_ranges_of_the_parallel_coordinates_filter_the_table(dashboard: Dashboard, browser: Browser) -> None:
    """By dragging over an axis, and by the keys of a slider; the best job's line is in the chart all the time."""
    browser.go(f"{dashboard.base}/runs/{dashboard.runs['sweep'].id}")
    plot = "document.querySelector('.plot[data-ready=parallel]')"
    browser.wait(f"!!{plot}")
    rows = "[...document.querySelectorAll('tr[data-job]')].filter(r => r.checkVisibility()).map(r => +r.dataset.job)"
    every = browser.value(rows)
    jobs = browser.value(f"{plot}.data.map(line => [line.meta.job, line.y[0]])")
    best = browser.value(f"{plot}.data.at(-1).meta.job")
    place = (
        f"(() => {{ {plot}.scrollIntoView({{block: 'center'}}); const r = {plot}.getBoundingClientRect(),"
        f" {{xaxis, yaxis}} = {plot}._fullLayout;"
        " return [...[-0.05, 0.3].map(v => r.x + xaxis._offset + xaxis.d2p(v)),"
        " ...[-0.05, 0.4].map(v => r.y + yaxis._offset + yaxis.d2p(v))]; })()"
    )
    left, right, low, high = browser.value(place)
    browser.drag((left, high), (right, low))
    browser.wait("document.querySelector('.ranges [role=status]').textContent !== ''")
    assert browser.value(rows) == [job for job in every if dict(jobs).get(job, 1) <= 0.4]
    assert 0 < len(browser.value(rows)) < len(every)
    browser.value("document.querySelector('.ranges button').click()")
    assert browser.value(rows) == every
    browser.value("document.querySelector('.ranges summary').focus()")
    browser.key("Enter")
    browser.value("document.querySelectorAll('.ranges input')[1].focus()")
    browser.key("Home")  # the least value of the first axis only
    assert browser.value(rows) == [job for job in every if dict(jobs).get(job, 1) == 0]
    hidden = f"{plot}.data.filter(line => line.opacity < 0.1).map(line => line.meta.job)"
    browser.wait(f"{hidden}.length === {len(jobs) - len(browser.value(rows))}")
    assert (best in browser.value(rows)) == (best not in browser.value(hidden))


def test_a_click_on_the_lineage_leads_on(dashboard: Dashboard, browser: Browser) -> None:
    browser.go(f"{dashboard.base}/artifacts/ChatModel/0")
    browser.wait(READY)
    nodes = "[...document.querySelectorAll('.sankey-node')]"
    browser.wait(f"{nodes}.length === 7")
    place = browser.value(
        f"(() => {{ const node = {nodes}.find(n => n.textContent.includes('nano3-pretrain')).querySelector('rect');"
        "node.scrollIntoView({block: 'center'}); const r = node.getBoundingClientRect();"
        "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    browser.click(*place)
    browser.wait(f"location.pathname === '/runs/{dashboard.runs['pretrain'].id}' && {READY}")
    assert "lr: 0.001" in browser.value("document.querySelector('main').textContent")


def test_an_export_works_from_the_disk(dashboard: Dashboard, browser: Browser, tmp_path: Path) -> None:
    names = ("pretrain", "sweep", "hostile")
    export(tmp_path / "out.html", [dashboard.runs[name].id for name in names])
    asked = len(browser.asked)
    browser.go((tmp_path / "out.html").as_uri())
    browser.wait(READY)
    assert {url.partition(":")[0] for url in browser.asked[asked:]} <= {"file", "data", "blob"}
    assert "tokenizing" not in browser.value("document.body.innerText")
    assert "step 2" in browser.value("document.body.textContent")
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    browser.key("t")
    assert browser.value("getComputedStyle(document.body).backgroundColor") != ground
    browser.value("document.querySelector('nav a[href=\"#lineage\"]').click()")
    browser.wait("!!document.querySelector('#lineage .plot[data-ready]')")
    assert (tmp_path / "out.html").stat().st_size < 8e6
