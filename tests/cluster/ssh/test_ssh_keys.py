"""Host keys and ways that are closed: refused within five seconds, and no credential leaves this machine."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from nemotron_kit.errors import NotSent
from nemotron_kit.remote.ssh import transport_for
from nemotron_kit.spec.runconfig import RunConfig

# What a server's debug log says once a client has offered a user name, let alone a key or a password.
AUTHENTICATION = ("userauth-request", "userauth_", "publickey", "password")


def refused(settings: dict[str, Any]) -> NotSent:
    """The error of a call that must fail, having taken less than five seconds."""
    began = time.monotonic()
    with pytest.raises(NotSent) as caught:
        transport_for(RunConfig(**settings)).call("ping")
    assert time.monotonic() - began < 5.0
    assert caught.value.exit_code == 3
    return caught.value


def saw_no_credential(server: Any) -> bool:
    log = server.log().lower()
    return "connection from" in log and not any(word in log for word in AUTHENTICATION)


def test_an_unknown_key_is_refused(client: Any, server: Any) -> None:
    client.writes(server, known="")
    error = refused(client.profile(server))
    assert "not known here" in error.message
    assert "profiles login" in str(error.hint)
    assert saw_no_credential(server)


def test_a_changed_key_is_refused(client: Any, server: Any, make_server: Callable[..., Any]) -> None:
    rogue = make_server("rogue")
    rogue.port = server.port
    client.writes(server)
    server.stop()
    rogue.start()
    error = refused(client.profile(server))
    assert "another host key" in error.message
    assert "ssh-keygen -R cluster" in str(error.hint)
    assert saw_no_credential(rogue)


def test_a_revoked_key_is_refused(client: Any, server: Any) -> None:
    client.writes(server, known=server.knows() + server.knows(mark="@revoked "))
    assert "revoked" in refused(client.profile(server)).message
    assert saw_no_credential(server)


@pytest.mark.parametrize("loose", ["StrictHostKeyChecking no", "StrictHostKeyChecking accept-new"])
def test_a_users_own_config_does_not_loosen_it(client: Any, server: Any, loose: str) -> None:
    client.writes(server, known="", extra=f"Host *\n  {loose}\n")
    refused(client.profile(server))
    assert saw_no_credential(server)
    assert (client.folder / "known").read_text() == ""


def test_a_jump_host_must_be_known_too(client: Any, server: Any, make_server: Callable[..., Any]) -> None:
    jump = make_server("jump").start()
    extra = (
        f"Host jump\n  HostName 127.0.0.1\n  Port {jump.port}\n  IdentityFile {jump.folder}/id\n"
        f"  UserKnownHostsFile {client.folder}/known\nHost cluster\n  ProxyJump jump\n"
    )
    client.writes(server, extra=extra)
    refused(client.profile(server))
    assert saw_no_credential(jump)
    client.writes(server, known=server.knows() + jump.knows(), extra=extra)
    assert transport_for(RunConfig(**client.profile(server))).call("ping") == (None, b"")
    assert "direct-tcpip" in jump.log()


def test_a_key_that_is_not_let_in_leads_to_login(client: Any, server: Any, tmp_path: Any) -> None:
    client.writes(server)
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    env = tmp_path / "env.toml"
    env.write_text(
        '[far]\nexecutor = "slurm"\ntunnel = "ssh"\nhost = "cluster"\nuser = "'
        f'{client.profile(server)["user"]}"\nremote_job_dir = "/x"\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEMOTRON_ENV_FILE", str(env))
        error = refused(client.profile(server, identity=str(other)))
    assert "requires a password or a second factor" in error.message
    assert "nemotron profiles login far" in str(error.hint)
    assert not saw_no_credential(server), "the log would show one"


def test_a_closed_port_says_so(client: Any, server: Any) -> None:
    client.writes(server)
    server.stop()
    assert "refused the connection" in refused(client.profile(server)).message


def test_a_host_that_accepts_and_says_nothing_is_given_up(client: Any, server: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client.writes(server)
        config = client.folder / "config"
        config.write_text(config.read_text().replace(str(server.port), str(silent.getsockname()[1])))
        assert "does not answer" in refused(client.profile(server)).message


def test_a_host_without_a_name_says_so(client: Any, server: Any) -> None:
    client.writes(server)
    assert "no such host" in refused(client.profile(server, host="no.such.host.invalid")).message


def test_a_socket_folder_that_others_can_enter_is_refused(client: Any, server: Any) -> None:
    client.writes(server)
    from nemotron_kit.errors import UserError
    from nemotron_kit.remote.ssh import ssh_folder

    folder = ssh_folder()
    folder.chmod(0o755)
    try:
        with pytest.raises(UserError, match="no other user can enter"):
            transport_for(RunConfig(**client.profile(server))).call("ping")
    finally:
        folder.chmod(0o700)
