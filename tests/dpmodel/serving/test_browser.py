"""The page of the interface in a real browser: it sends a query, and the query is charged."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest

from dpmodel.prediction import query_status

from .conftest import predictor_for, running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("chromium") is None or shutil.which("chromedriver") is None, reason="needs Chromium"
    ),
]

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"

#: What a reader does: opens the operation, fills in the body, and sends it.
STEPS = {
    "open": "document.querySelector('[id$=predict_predict_post] .opblock-summary-control')",
    "try": "document.querySelector('.try-out__btn')",
    "execute": "document.querySelector('.execute')",
}
FILL = """
const body = document.querySelector('.body-param__text');
Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call(body, arguments[0]);
body.dispatchEvent(new Event('input', {bubbles: true}));
"""
ANSWER = "document.querySelector('.live-responses-table tbody .response-col_status')"


class Browser:
    """A window of Chromium, over the WebDriver protocol (W3C)."""

    def __init__(self, port):
        self.port = port
        options = {"args": FLAGS.split(), "binary": shutil.which("chromium")}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.path = "/session/" + self.send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def send(self, method, path, values=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(method, path, None if values is None else json.dumps(values))
        found = json.loads(connection.getresponse().read())["value"]
        assert not (isinstance(found, dict) and "error" in found), found
        return found

    def show(self, address):
        self.send("POST", f"{self.path}/url", {"url": address})

    def run(self, script, *arguments):
        return self.send("POST", f"{self.path}/execute/sync", {"script": script, "args": arguments})

    def wait_for(self, element):
        deadline = time.monotonic() + 60
        while not self.run(f"return {element} !== null"):
            assert time.monotonic() < deadline, f"the page shows no {element}"
            time.sleep(0.05)

    def click(self, element):
        self.wait_for(element)
        self.run(f"{element}.click()")

    def messages(self):
        return self.send("POST", f"{self.path}/se/log", {"type": "browser"})


@contextmanager
def browser():
    with subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            found = (re.search(r"started successfully on port (\d+)", line) for line in driver.stdout)
            window = Browser(int(next(filter(None, found))[1]))
            yield window
            window.send("DELETE", window.path)
        finally:
            driver.terminate()


def test_a_reader_of_the_page_can_query(folder):
    with running(predictor_for(folder)) as port, browser() as window:
        window.show(f"http://127.0.0.1:{port}/docs")
        window.click(STEPS["open"])
        window.click(STEPS["try"])
        window.run(FILL, json.dumps({"rows": [[0.5, -1.0, 2.0, 0.0]] * 3, "top_k": 2}))
        window.click(STEPS["execute"])
        window.wait_for(ANSWER)
        assert window.run(f"return {ANSWER}.textContent").startswith("200")
        assert window.messages() == []
    assert query_status(folder).asked == 3
