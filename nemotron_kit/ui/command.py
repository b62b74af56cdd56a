"""`nemotron ui`: serves the dashboard on this machine, or writes it to one file."""

from __future__ import annotations

import gc
import os
import secrets
import socket
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Any

from nemotron_kit.cli.output import print_json, write_lines
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.installed import require_packages

PORT = 8321
# Ports after the first that are tried where that is taken.
_TRIES = 20
_ADDRESS = "127.0.0.1"
_PACKAGES = ("starlette", "uvicorn", "jinja2", "plotly")


def main(argv: list[str]) -> int:
    """Serve the dashboard until Ctrl-C (exit code 0), or export runs to a file."""
    options: Any = ToolParser("ui").parse(argv)
    if options.ids and options.export is None:
        first = options.ids[0]
        raise UserError(
            "nemotron ui: runs are named for --export only; the page shows all.",
            hint=f"nemotron ui --export {first}.html {first}",
        )
    if options.export is not None and not options.ids:
        raise UserError("nemotron ui --export: which runs?", hint=f"nemotron ui --export {options.export} latest")
    if options.export is not None and not options.export.lower().endswith((".html", ".htm")):
        words = " ".join(["FILE.html", options.export, *options.ids])
        raise UserError(
            f"nemotron ui --export {options.export}: the file to write ends in .html.",
            hint=f"nemotron ui --export {words}",
        )
    if options.port is not None and options.port > 65535:
        raise UserError(f"--port {options.port}: ports end at 65535.")
    require_packages(_PACKAGES, "nemotron ui needs", hint="pip install 'nemotron-kit[ui]'")
    gc.enable()  # it is off in a command line, which ends soon
    if options.export is None:
        return _serve(options.port, browser=not options.no_browser and not options.json, as_json=options.json)
    from nemotron_kit.ui.export import export

    file = Path(options.export)
    pages = export(file, options.ids)
    size = file.stat().st_size
    if options.json:
        print_json({"file": str(file.absolute()), "pages": pages, "bytes": size})
    else:
        write_lines([f"{file}: {len(pages)} pages, {size / 1e6:.1f} MB"])
    return 0


def _serve(port: int | None, *, browser: bool, as_json: bool) -> int:
    import uvicorn

    from nemotron_kit.ui.app import TOKEN, make_app

    listener = _listen(port)
    port = listener.getsockname()[1]
    token = secrets.token_urlsafe(24)
    base = f"http://{_ADDRESS}:{port}/?{TOKEN}="
    once = secrets.token_urlsafe(24)
    # Cookies do not tell ports apart: without the port in its name, a second dashboard would take the first one's.
    config = uvicorn.Config(
        make_app(token, cookie=f"nemotron-ui-{port}", once=once),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    _print_address(f"{base}{token}", port, as_json=as_json)
    remote = bool(os.environ.get("SSH_CONNECTION"))
    if browser and not remote and sys.stdout.isatty():
        threading.Thread(target=webbrowser.open, args=(f"{base}{once}",), daemon=True).start()
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # the way in which it ends
        pass
    finally:
        listener.close()
    return 0


def _print_address(url: str, port: int, *, as_json: bool) -> None:
    tunnel = None  # the line for the machine that this ssh session comes from
    words = os.environ.get("SSH_CONNECTION", "").split()
    if len(words) == 4:
        user = os.environ.get("USER") or os.environ.get("LOGNAME")
        at = f"{user}@{socket.gethostname()}" if user else socket.gethostname()
        tunnel = f"ssh -N -L {port}:{_ADDRESS}:{port}{f' -p {words[3]}' if words[3] != '22' else ''} {at}"
    if as_json:
        print_json({"url": url, "port": port, "pid": os.getpid(), "tunnel": tunnel})
    else:
        write_lines(["The dashboard, for this browser only (the address has its key):", "", f"  {url}", ""])
        if tunnel:
            write_lines(["On your own machine, first, for the connection:", "", f"  {tunnel}", ""])
        write_lines(["Ctrl-C ends it."])
    sys.stdout.flush()


def _listen(port: int | None) -> socket.socket:
    """A socket at the port, else at the first free one from PORT on."""
    ports = [port] if port is not None else [*range(PORT, PORT + _TRIES), 0]
    for number in ports:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((_ADDRESS, number))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            if port is not None:
                raise NemotronError(
                    f"--port {port}: {error.strerror or error}.", hint="Without --port a free one is found."
                ) from error
    raise NemotronError(f"No port of {_ADDRESS} is free.")
