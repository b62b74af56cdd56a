"""Operations on another machine: one request, one answer, and what stands around them."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.errors import NemotronError, Unreachable
from nemotron_kit.remote.agent.operations import packed
from nemotron_kit.remote.ssh import LocalTransport, transport_for
from nemotron_kit.spec.runconfig import RunConfig


def test_an_operation_over_there_gives_what_it_gives_here(client: Any, server: Any) -> None:
    client.writes(server)
    there = transport_for(RunConfig(**client.profile(server)))
    facts, _ = there.call("hello")
    assert facts["executable"] == "/usr/bin/python3"
    assert facts["home"] == LocalTransport().call("hello")[0]["home"]
    assert there.root == str(client.folder / "target")


def test_bytes_go_both_ways_as_they_are(client: Any, server: Any) -> None:
    client.writes(server)
    there = transport_for(RunConfig(**client.profile(server)))
    data = os.urandom(3_000_000)
    digest = hashlib.sha256(data).hexdigest()
    there.call("put_code", data, root=there.root, digest=digest)
    assert (client.folder / "target" / "code" / f"{digest}.tar.gz").read_bytes() == data


def test_arguments_are_data_and_never_a_command(client: Any, server: Any, tmp_path: Path) -> None:
    client.writes(server)
    canary = tmp_path / "canary"
    nasty = f"'; touch {canary} #\n$(touch {canary})`touch {canary}`\x00é\u2028"
    found, _ = transport_for(RunConfig(**client.profile(server))).call("exist", paths=[nasty, "/etc"])
    assert found == [False, True]
    assert not canary.exists()


def test_a_root_with_shell_characters_is_only_a_path(client: Any, server: Any, tmp_path: Path) -> None:
    client.writes(server)
    root = str(tmp_path / "a 'b' $(touch x) ;c")
    there = transport_for(RunConfig(**client.profile(server, remote_job_dir=root)))
    assert there.call("ping") == (None, b"")
    assert (Path(root) / "kit").is_dir()


def test_an_error_over_there_is_the_same_error_here(client: Any, server: Any) -> None:
    client.writes(server)
    there = transport_for(RunConfig(**client.profile(server)))
    with pytest.raises(NemotronError, match="No operation 'pong'") as caught:
        there.call("pong")
    assert "ping" in str(caught.value.hint)
    with pytest.raises(NemotronError, match="damaged on its way"):
        there.call("put_code", b"x", root=there.root, digest="0" * 64)
    assert there.call("ping") == (None, b"")


def test_the_kit_is_sent_once_and_is_the_launchs_own(client: Any, server: Any) -> None:
    client.writes(server)
    for _ in range(2):
        there = transport_for(RunConfig(**client.profile(server)))
        there.call("ping")
        there.close()
    (kit,) = (client.folder / "target" / "kit").iterdir()
    import nemotron_kit

    package = Path(str(nemotron_kit.__file__)).parent
    assert (kit / "nemotron_kit" / "errors.py").read_bytes() == (package / "errors.py").read_bytes()
    assert stat.S_IMODE(kit.stat().st_mode) & 0o077 == 0


def test_a_kit_that_others_can_write_to_is_not_run(client: Any, server: Any) -> None:
    client.writes(server)
    there = transport_for(RunConfig(**client.profile(server)))
    there.call("ping")
    there.close()
    (kit,) = (client.folder / "target" / "kit").iterdir()
    kit.chmod(0o777)
    with pytest.raises(NemotronError, match="written by others"):
        transport_for(RunConfig(**client.profile(server))).call("ping")


def test_what_a_login_shell_prints_is_not_the_answer(client: Any, make_server: Callable[..., Any]) -> None:
    noise = (
        'ForceCommand echo "Welcome!"; printf "no newline {"; echo noise >&2; eval "$SSH_ORIGINAL_COMMAND"; echo bye'
    )
    server = make_server("noisy", noise).start()
    client.writes(server)
    there = transport_for(RunConfig(**client.profile(server)))
    assert there.call("exist", paths=["/etc"]) == ([True], b"")


@pytest.mark.parametrize(
    ("python", "words"),
    [("no-such-python", "no no-such-python there"), ("/bin/false", "exit code 1"), ("/bin/true", "exit code 0")],
)
def test_a_python_that_is_none_is_named(client: Any, server: Any, python: str, words: str) -> None:
    client.writes(server)
    with pytest.raises(NemotronError, match=words):
        transport_for(RunConfig(**client.profile(server, python=python))).call("ping")


def test_an_old_python_says_so(client: Any, server: Any, tmp_path: Path) -> None:
    client.writes(server)
    old = tmp_path / "old-python"
    # Everything of a real one but its version.
    old.write_text(
        '#!/bin/sh\nexec /usr/bin/python3 -I -c \'import sys;sys.version_info=(3,9,0);sys.version="3.9.0 x"\n'
        "exec(sys.stdin.buffer.readline())'\n"
    )
    old.chmod(0o755)
    with pytest.raises(NemotronError, match=r"3\.9\.0 there, 3\.11 or newer"):
        transport_for(RunConfig(**client.profile(server, python=str(old)))).call("ping")


def test_a_lost_connection_is_unreachable_and_the_next_call_connects_again(client: Any, server: Any) -> None:
    client.writes(server)
    there = transport_for(RunConfig(**client.profile(server)))
    there.call("ping")
    facts, _ = there.call("hello")
    os.kill(int(facts["pid"]), 9)
    with pytest.raises(Unreachable, match="whether it was done is not known"):
        there.call("exist", paths=[])
    assert there.call("exist", paths=["/"]) == ([True], b"")


def test_a_connection_that_died_in_a_pause_is_made_again_unseen(client: Any, server: Any) -> None:
    client.writes(server)
    there = transport_for(RunConfig(**client.profile(server)))
    facts, _ = there.call("hello")
    os.kill(int(facts["pid"]), 9)
    time.sleep(2.2)  # the pause
    assert there.call("exist", paths=["/"]) == ([True], b"")


def test_connecting_again_goes_through_the_open_master(client: Any, server: Any) -> None:
    client.writes(server)
    for _ in range(3):
        there = transport_for(RunConfig(**client.profile(server)))
        there.call("ping")
        there.close()
    assert server.log().count("Accepted publickey") == 1


def test_nothing_of_the_users_is_lent(client: Any, server: Any) -> None:
    client.writes(
        server, extra="Host *\n  ForwardAgent yes\n  ForwardX11 yes\n  LocalForward 127.0.0.1:1 127.0.0.1:2\n"
    )
    transport_for(RunConfig(**client.profile(server))).call("ping")
    asked = server.log()
    assert "exec" in asked
    for request in ("auth-agent-req", "x11-req", "pty-req", "tcpip-forward"):
        assert request not in asked


def test_the_target_needs_no_package_at_all(client: Any, server: Any) -> None:
    """The operations run on a bare Python: the kit brings all that they need."""
    bare = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", "import omegaconf"], capture_output=True, check=False
    ).returncode
    if bare == 0:
        pytest.skip("/usr/bin/python3 has omegaconf here, so this shows nothing")
    client.writes(server)
    there = transport_for(RunConfig(**client.profile(server)))
    for op, args in (
        ("resolve", {"root": there.root + "/artifacts", "references": {"data": ["X:v1", None]}}),
        ("registry_facts", {"root": there.root + "/artifacts"}),
        ("has_code", {"root": there.root, "digest": "0" * 64}),
    ):
        there.call(op, **args)
    run = f"{there.root}/runs/20261124-171204-r-s-1f03a7"
    payload = packed({"jobs/0/config.yaml": "x: 1\n"})
    assert there.call("make_run", payload, folder=run) == (1, b"")
    assert there.call("make_run", payload, folder=run) == (0, b"")
    assert (Path(run) / "jobs/0/config.yaml").read_text() == "x: 1\n"
    assert not (client.folder / "target" / "artifacts").exists(), "asking a registry must not make one"


def test_escape_sequences_from_there_do_not_reach_the_terminal(client: Any, make_server: Callable[..., Any]) -> None:
    server = make_server("evil", r'ForceCommand printf "\033]0;evil\007\033[2Jgone\r" >&2; exit 9').start()
    client.writes(server)
    with pytest.raises(NemotronError) as caught:
        transport_for(RunConfig(**client.profile(server))).call("ping")
    assert "gone" in str(caught.value)
    assert not set("\x1b\x07\r") & set(str(caught.value))
