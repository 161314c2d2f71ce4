"""A page opened in headless Chromium, by its DevTools protocol over a pipe: no package, and no port, is needed."""

import fcntl
import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
COMPLAINTS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


def chromium() -> str | None:
    """Where one is installed, the environment's CHROMIUM first."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Opened:
    """found: what the expression gave. requests: addresses that the page asked for. console: what it wrote."""

    found: Any = None
    requests: list[str] = field(default_factory=list)
    console: list[Any] = field(default_factory=list)


def opened(page: Path, expression: str) -> Opened:
    """`page` once it is loaded, and the value of JavaScript's `expression` in it."""
    # The browser reads commands from 3 and writes answers to 4, JSON with a zero byte after each.
    (commands, own_commands), (own_answers, answers) = os.pipe(), os.pipe()
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands, answers)]
    redirected = 'exec "$@" 3<&{} 4>&{}'.format(*theirs)
    process = subprocess.Popen(
        ["bash", "-c", redirected, "bash", str(chromium()), *OPTIONS, "about:blank"],
        pass_fds=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for fd in (commands, answers, *theirs):
        os.close(fd)
    try:
        with open(own_commands, "wb", buffering=0) as to, open(own_answers, "rb") as of:
            return _talk(to, of, page.as_uri(), expression)
    finally:
        process.kill()
        process.wait()


def _talk(to: Any, of: Any, address: str, expression: str) -> Opened:
    events: list[dict] = []
    session: dict[str, str] = {}

    def read() -> dict:
        content = bytearray()
        while (byte := of.read(1)) not in (b"\0", b""):
            content += byte
        return json.loads(content)

    def call(method: str, **parameters: Any) -> dict:
        to.write(json.dumps({"id": 1, "method": method, "params": parameters, **session}).encode() + b"\0")
        while "id" not in (answer := read()):
            events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    target = call("Target.createTarget", url="about:blank")["targetId"]
    session["sessionId"] = call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for part in ("Page", "Runtime", "Log", "Network"):
        call(f"{part}.enable")
    events.clear()
    call("Page.navigate", url=address)
    while not any(e["method"] == "Page.loadEventFired" for e in events):
        events.append(read())
    found = call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return Opened(found, asked, [e["params"] for e in events if e["method"] in COMPLAINTS])
