"""``dpmodel serve`` refuses what it cannot serve safely, and stops gracefully."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("module", ["fastapi", "fastapi_offline", "uvicorn"])
def test_a_missing_package_is_named_with_its_extra(command, trained_once, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    code, text, error = command("serve", trained_once)
    assert (code, text) == (2, "")
    assert f'serving needs {module}; in the clone of dpmodel, run: pip install -e ".[serve]"' in error


@pytest.mark.slow
def test_other_commands_import_none_of_the_extra():
    code = "import sys, dpmodel, dpmodel.cli.application, dpmodel.runs.predict; print(sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"fastapi", "uvicorn", "starlette", "fastapi_offline"} & set(re.findall(r"'(\w+)'", found))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_without_tokens_only_this_machine_is_served(command, trained_once, host):
    code, _, error = command("serve", trained_once, "--host", host)
    assert code == 2
    assert "without a token file" in error
    assert "--token-file" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "70000"), "cannot listen"),
        (("--max-rows", "0"), "at least 1"),
        (("--requests-per-minute", "-1"), "at least 0"),
        (("--mechanism", "dp_logits", "--sensitivity", "none"), "has no guarantee"),
        (("--token-file", "missing.txt"), "cannot be read"),
    ],
)
def test_bad_settings_are_refused(command, trained_once, arguments, words):
    code, text, error = command("serve", trained_once, *arguments)
    assert (code, text) == (2, "")
    assert words in error


def test_a_port_in_use_is_refused(command, trained_once):
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, _, error = command("serve", trained_once, "--port", other.getsockname()[1])
    assert code == 2
    assert "cannot listen on 127.0.0.1" in error


def test_a_folder_that_cannot_be_served_is_refused(command, tmp_path):
    code, _, error = command("serve", tmp_path, "--port", "0")
    assert code == 2
    assert "contains no training" in error


@pytest.mark.slow
def test_a_run_is_served_until_a_signal(trained_once):
    arguments = [sys.executable, "-m", "dpmodel", "serve", str(trained_once), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as process:
        privacy, place = process.stdout.readline(), process.stdout.readline()
        assert "post-processing" in privacy
        connection = http.client.HTTPConnection("127.0.0.1", int(re.search(r":(\d+) ", place)[1]), timeout=30)
        connection.request("GET", "/budget")
        assert b'"free":true' in connection.getresponse().read()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "stopped\n"
    assert process.returncode == 0
