"""The dashboard's pages, asked for as a browser does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from nemotron_kit import files
from nemotron_kit.launch.status import StatusSnapshot
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.progress import Progress
from nemotron_kit.ui import reading
from nemotron_kit.ui.app import POLICY, make_app

from ...conftest import until
from ...dashboard import HOSTILE, append, fill, launched, rows

BASE, TOKEN = "http://127.0.0.1:8321", "s3cret"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RunFolder]]:
    """A home with something of everything, for all the tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("ui")
        patch.setenv("NEMOTRON_HOME", str(folder / "home"))
        patch.setenv("NEMOTRON_ENV_FILE", str(folder / "env.toml"))
        patch.setattr(files, "fsync_dir", lambda _: None)
        (folder / "env.toml").write_text("")
        yield fill()


@pytest.fixture(autouse=True)
def added_runs_go(runs: dict[str, RunFolder]) -> Iterator[None]:
    """A run that a test adds is none of the next test's."""
    yield
    names = {run.id for run in runs.values()}
    for path in runs["sft"].path.parent.glob("2*"):
        if path.name not in names:
            shutil.rmtree(path)


@pytest.fixture(scope="module")
def browser(runs: dict[str, RunFolder]) -> TestClient:
    client = TestClient(make_app(TOKEN), base_url=BASE)
    assert client.get(f"/?token={TOKEN}").status_code == 200
    return client


def text(client: TestClient, url: str, status: int = 200) -> str:
    answer = client.get(url)
    assert answer.status_code == status, f"{url}: {answer.status_code} {answer.text[:300]}"
    return answer.text


def figures(page: str) -> dict[str, dict[str, Any]]:
    """The charts of a page, by their keys."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return {figure["key"]: figure for figure in map(json.loads, found)}


def ids(page: str) -> list[str]:
    return re.findall(r'<input type="checkbox" name="run" value="([^"]+)"', page)


# --- who may look


def test_only_the_token_opens_it(runs: dict[str, RunFolder]) -> None:
    client = TestClient(make_app(TOKEN, cookie="c"), base_url=BASE, follow_redirects=False)
    for url in ("/", "/?token=", "/?token=s3cre", "/?token=%ff", "/static/ui.js", f"/runs/{runs['sft'].id}/0/log/job"):
        refused = client.get(url)
        assert (refused.status_code, "set-cookie" in refused.headers) == (403, False), url
        assert "nano3" not in refused.text
    opened = client.get(f"/runs/{runs['sweep'].id}?sort=loss&token={TOKEN}")
    assert (opened.status_code, opened.headers["location"]) == (303, f"/runs/{runs['sweep'].id}?sort=loss")
    cookie = opened.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "max-age" not in cookie
    assert client.get("/").status_code == 200


def test_what_stands_in_a_browsers_command_line_opens_it_once(home: Path) -> None:
    app = make_app(TOKEN, once="first")
    opened = [TestClient(app, base_url=BASE, follow_redirects=False).get("/?token=first").status_code for _ in range(3)]
    assert opened == [303, 403, 403]
    assert TestClient(make_app(TOKEN), base_url=BASE).get("/?token=").status_code == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("127.0.0.1:8321", "localhost:9000", "localhost", "[::1]:8321", "LOCALHOST:1")),
        *(
            (host, 421)
            for host in ("evil.example", "evil.example:8321", "localhost.evil.example:8321", "", "127.0.0.1:x")
        ),
    ],
)
def test_another_name_of_this_address_is_refused(browser: TestClient, host: str, status: int) -> None:
    """DNS rebinding: a site's own name, made to resolve to 127.0.0.1."""
    assert browser.get("/", headers={"host": host, "cookie": f"nemotron-ui={TOKEN}"}).status_code == status


def test_it_only_shows(browser: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert browser.request(method, "/").status_code == 405


def test_every_answer_has_the_policy(browser: TestClient) -> None:
    assert not re.search(r"unsafe-(eval|inline)|https?:|\*", POLICY)
    for url in ("/", "/nowhere", "/static/ui.js", "/static/none", "/runs/nope"):
        headers = browser.get(url).headers
        assert headers["content-security-policy"] == POLICY
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


# --- what there is to see


def elements(page: str) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """The elements of a page, with their attributes."""
    found: list[tuple[str, list[tuple[str, str | None]]]] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, attrs))

    Parser().feed(page)
    return found


def crawl(client: TestClient) -> dict[str, str]:
    """Every page that one can get to: URL → HTML."""
    found: dict[str, str] = {}
    left = ["/"]
    while left:
        url = left.pop()
        if url not in found:
            found[url] = text(client, url)
            left += [unescape(link) for link in re.findall(r'href="(/[^"]*)"', found[url]) if "/static/" not in link]
    return found


def test_every_link_leads_somewhere_and_no_name_is_markup(browser: TestClient, runs: dict[str, RunFolder]) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs["sft"].path.parent.rglob("*") if path.is_file()}
    pages = crawl(browser)
    kinds = {re.sub(r"\d{8}-[\w-]+", "ID", url.partition("?")[0]) for url in pages}
    assert {"/", "/runs/ID", "/runs/ID/8", "/artifacts", "/artifacts/Model", "/artifacts/Model/1", "/lineage"} <= kinds
    for url, page in pages.items():
        assert "\u202e" not in page, url
        for tag, attributes in elements(page):
            assert tag != "img" and not any(name.startswith("on") or name == "style" for name, _ in attributes), url
            leads = [value for name, value in attributes if name in ("src", "href", "action", "formaction")]
            assert all(re.match("/(?!/)|#|data:,", value or "") for value in leads), url
            kinds_of_script = dict(attributes).get("type") == "application/json" or leads
            assert tag != "script" or kinds_of_script, url
    hostile = pages[f"/runs/{runs['hostile'].id}"]
    assert unescape(hostile).count(HOSTILE.replace("\u202e", "\\u202e")) >= 3
    assert next(iter(figures(hostile))).startswith("metric-<script>")
    # Nothing was written, either.
    after = {path: path.stat().st_mtime_ns for path in runs["sft"].path.parent.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("q=BASELINE", ["pretrain"]),
        ("tag=paper", ["pretrain"]),
        ("tag=paper&state=failed", []),
        ("state=failed", ["failed"]),
        ("recipe=demo", ["hostile"]),
        ("stage=data", ["prep"]),
        ("stage=data+prep&since=52w", ["prep"]),
        ("state=running", ["running"]),
    ],
)
def test_filters(browser: TestClient, runs: dict[str, RunFolder], query: str, names: list[str]) -> None:
    assert ids(text(browser, f"/?{query}")) == [runs[name].id for name in names]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("/?state=done", "&#39;done&#39; is no state."),
        ("/?since=soon", "expected 30m, 2h, 3d or a date"),
        ("/runs/nope", "No run &#39;nope&#39;."),
        ("/artifacts/Nope", "No artifact is called &#39;Nope&#39;"),
        ("/artifacts/Model/7", "Model has no v7."),
        ("/compare", "Which runs?"),
        ("/diff?run=latest", "two to ten runs"),
    ],
)
def test_what_is_not_there(browser: TestClient, url: str, said: str) -> None:
    assert said in text(browser, url, 404)


def test_a_run(browser: TestClient, runs: dict[str, RunFolder]) -> None:
    page = text(browser, f"/runs/{runs['pretrain'].id}")
    assert "baseline" in page and "the one to beat" in page and "nemotron nano3 pretrain -c tiny" in page
    assert 'href="/artifacts/PretrainData/0"' in page and 'href="/artifacts/Model/0"' in page
    assert "lr: 0.001" in page
    loss = figures(page)["metric-loss"]["data"][0]
    assert (loss["x"][:2], len(loss["y"])) == ([0, 1], 400)


def test_a_sweep_marks_its_best(browser: TestClient, runs: dict[str, RunFolder]) -> None:
    run = runs["sweep"].id
    page = text(browser, f"/runs/{run}")
    assert ids(page)[0] == f"{run}/8"  # 0.003 with the largest batch
    best = re.search(r'<tr[^>]* class="best">(.*?)</tr>', page, re.DOTALL)
    assert best and "★" in best[1] and ">0.003<" in best[1]
    drawn = figures(page)["parallel"]
    assert drawn["layout"]["xaxis"]["ticktext"] == ["train.lr", "train.batch", "loss"]
    assert len(drawn["data"]) == 12
    assert drawn["data"][-1]["meta"] == {"best": True, "rank": 0.0, "job": 8}
    assert drawn["data"][-1]["y"][1:] == [1.0, 0.0]
    assert len(figures(page)["metric-loss"]["data"]) == 10
    assert ids(text(browser, f"/runs/{run}?sort=tokens_per_s"))[0] == f"{run}/0"  # all alike: by number
    assert "none of these jobs has this metric" in text(browser, f"/runs/{run}?sort=los", 404)


def test_curves_lie_over_each_other(browser: TestClient, runs: dict[str, RunFolder]) -> None:
    page = text(browser, f"/compare?run={runs['pretrain'].id}&run={runs['slow'].id}&run={runs['sweep'].id}")
    names = [line["name"] for line in figures(page)["metric-loss"]["data"]]
    assert names[:2] == ["baseline", runs["slow"].id]
    assert len(names) == 12 and names[2] == f"{runs['sweep'].id}/8"


def test_curves_have_the_time_and_the_tokens_as_axes(browser: TestClient, runs: dict[str, RunFolder]) -> None:
    lines = ({"step": at, "loss": 1.0 / at, "tokens": 100 * at, "_timestamp": 5e8 + at} for at in (1, 2, 3))
    timed = launched("axes", [{"metrics.jsonl": "".join(f"{json.dumps(line)}\n" for line in lines)}], recipe="other")
    plain = launched("axes", [{"metrics.jsonl": '{"step": 1, "loss": 1.5}\n'}], recipe="other")
    found = figures(text(browser, f"/compare?run={timed.id}&run={plain.id}"))
    assert sorted(found) == ["metric-loss", "metric-tokens"]  # the time is no metric
    axes = found["metric-loss"]["axes"]
    assert {name: axis["x"] for name, axis in axes.items()} == {
        "time": [[0, 1, 2], []],
        "tokens": [[100, 200, 300], []],
    }
    assert figures(text(browser, f"/runs/{plain.id}"))["metric-loss"]["axes"] == {}


def test_what_differs(browser: TestClient, runs: dict[str, RunFolder], tmp_path: Path) -> None:
    def git(*words: str) -> str:
        named = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", "-C", str(tmp_path), *named, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    both = []
    for number in (1, 2):
        (tmp_path / "train.py").write_text(f"x = {number}  # <b>\n")
        git("add", "train.py")
        git("commit", "-qm", "x")
        code = {"commit": git("rev-parse", "HEAD"), "dirty": number == 2, "folder": str(tmp_path)}
        both.append(launched("code", [{"config.yaml": f"lr: {number}\n"}], recipe="other", repository=code))
    page = text(browser, f"/diff?run={both[0].id}&run={both[1].id}")
    assert re.search(r"<bdi>lr</bdi></th><td><bdi>1</bdi></td><td><bdi>2</bdi>", page)
    assert '<span class="del">-x = 1  # &lt;b&gt;</span>' in page
    assert '<span class="add">+x = 2  # &lt;b&gt;</span>' in page
    assert "edits that were not committed; they are not part of this" in page
    assert both[0].id in text(browser, f"/runs/{both[1].id}")  # the one of this stage before it


def test_lineage(browser: TestClient, runs: dict[str, RunFolder]) -> None:
    page = text(browser, "/artifacts/ChatModel/0")
    graph = figures(page)["lineage"]["data"][0]
    urls = [url for url, _ in graph["node"]["customdata"]]
    names = [unescape(name) for _, name in graph["node"]["customdata"]]
    edges = {(names[a], names[b]) for a, b in zip(graph["link"]["source"], graph["link"]["target"], strict=True)}
    way = [
        "/data/raw/corpus.jsonl",
        runs["prep"].id,
        "PretrainData:v0",
        runs["pretrain"].id,
        "Model:v0",
        runs["sft"].id,
    ]
    assert edges == set(zip(way, [*way[1:], "ChatModel:v0"], strict=True))  # and not the other run's Model:v1
    assert urls[names.index("Model:v0")] == "/artifacts/Model/0"
    assert urls[names.index(runs["sft"].id)] == f"/runs/{runs['sft'].id}"
    assert urls[names.index(way[0])] is None
    assert "production" in page and "part-0.txt" in page
    assert len(figures(text(browser, "/lineage"))["lineage"]["data"][0]["node"]["label"]) == 9


# --- while runs are written


def test_a_target_that_does_not_answer(
    browser: TestClient, runs: dict[str, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked in the background: the page does not wait for it."""
    run = launched("far", executor="slurm", code=None, settings={"executor": "slurm", "host": "login1"})
    asked = threading.Event()

    def refresh(given: list[RunFolder], *, progress: bool) -> dict[str, StatusSnapshot]:
        asked.set()
        return {each.id: StatusSnapshot(0.0, {}, lost="login1: no route <to> host") for each in given}

    monkeypatch.setattr(reading, "refresh", refresh)
    monkeypatch.setattr(reading, "mirror", lambda *_: None)
    assert run.id in text(browser, "/?stage=far")
    assert asked.wait(20)
    until(lambda: 'class="state unreachable"' in text(browser, "/?stage=far"))
    page = text(browser, f"/runs/{run.id}")
    assert 'class="state unreachable"' in page and "login1: no route &lt;to&gt; host" in page


def test_what_runs_elsewhere_has_the_progress_that_its_target_reports(
    browser: TestClient, runs: dict[str, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launched("away", executor="slurm", code=None, settings={"executor": "slurm", "host": "login1"})
    found = StatusSnapshot(time.time(), progress=Progress("step", 7, 9, 3600.0, 0.5))
    monkeypatch.setattr(reading, "refresh", lambda given, progress: {each.id: found for each in given})
    monkeypatch.setattr(reading, "mirror", lambda *_: None)
    until(lambda: "step 7/9, " in text(browser, "/?stage=away"))
    assert "left, loss 0.5" in text(browser, f"/runs/{run.id}")


def test_a_page_is_sent_again_only_when_it_has_changed(browser: TestClient, runs: dict[str, RunFolder]) -> None:
    run = runs["running"]
    url = f"/runs/{run.id}"
    first = browser.get(url)
    assert 'data-refresh="3"' in first.text
    again = {"if-none-match": first.headers["etag"]}
    assert browser.get(url, headers=again).status_code in (200, 304)  # it says how long it runs
    append(run, '{"step": 10, "loss": 0.25}\n{"step": 11, "lo', "metrics.jsonl")
    loss = figures(text(browser, url))["metric-loss"]["data"][0]
    assert (loss["x"][-1], loss["y"][-1]) == (10, 0.25)
    assert "step 10, loss 0.25" in text(browser, url)
    done = f"/runs/{runs['sft'].id}"
    assert "data-refresh" not in text(browser, done)
    tag = browser.get(done).headers["etag"]
    unchanged = browser.get(done, headers={"if-none-match": tag})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_a_log_is_followed_by_its_offset(browser: TestClient, runs: dict[str, RunFolder]) -> None:
    url = f"/runs/{runs['running'].id}/0/log/job"
    part = browser.get(url).json()
    assert part == {"text": "step 0\n", "next": 7, "more": False, "over": False}
    append(runs["running"], "10%\r20%\r30%\n\x1b[31mred\x1b[0m \x1b[2Jé\n")
    part = browser.get(f"{url}?from=7").json()
    assert part["text"] == "30%\nred ^[[2Jé\n"
    assert browser.get(f"{url}?from={part['next']}").json()["text"] == ""
    for name in ("..%2f..%2fplan", "a.b", "%2e%2e"):
        assert browser.get(f"/runs/{runs['running'].id}/0/log/{name}").status_code == 404


def test_damaged_records_are_said(browser: TestClient, runs: dict[str, RunFolder]) -> None:
    run = launched("broken", [{"metrics.jsonl": "no json\n[1]\n" + rows([1.0])}], recipe="other")
    (run.job().path / "artifacts.json").write_text("{")
    assert "not valid JSON" in text(browser, f"/runs/{run.id}")
    (run.path / "plan.json").write_text("{")
    for url in ("/", f"/runs/{run.id}", f"/diff?run={run.id}&run={runs['sft'].id}"):
        answer = browser.get(url)
        assert answer.status_code in (200, 500) and "plan.json" in answer.text, url
    assert 'class="state damaged"' in text(browser, "/")


def test_a_home_without_anything(home: Path) -> None:
    client = TestClient(make_app(TOKEN), base_url=BASE)
    assert "No runs yet in" in text(client, f"/?token={TOKEN}")
    assert "Nothing is registered yet" in text(client, "/artifacts")
    assert "Nothing that was made from something" in text(client, "/lineage")
    assert not home.exists()
