"""A browser for a test, driven by chromedriver over WebDriver's HTTP: no packages beyond Python's own."""

import base64
import contextlib
import json
import pathlib
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"enter": "\ue007", "tab": "\ue004", "escape": "\ue00c", "right": "\ue014", "down": "\ue015", "space": " "}


class BrowserError(Exception):
    """chromedriver, or the browser behind it, refused something."""


class Browser:
    """One window."""

    def __init__(self, base, session):
        self.base, self.session = base, session

    def send(self, method, path, body=None):
        data = json.dumps(body if body is not None else {}).encode() if method == "POST" else None
        request = urllib.request.Request(f"{self.base}{path}", data=data, method=method)
        request.add_header("content-type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise BrowserError(f"{method} {path}: {error.read().decode()[:800]}") from None

    def of_session(self, method, path, body=None):
        return self.send(method, f"/session/{self.session}{path}", body)

    def go(self, url):
        self.of_session("POST", "/url", {"url": url})

    def run(self, script, *args):
        """What a JavaScript function body returns."""
        return self.of_session("POST", "/execute/sync", {"script": script, "args": list(args)})

    def devtools(self, command, **params):
        return self.of_session("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def find(self, css):
        return self.of_session("POST", "/element", {"using": "css selector", "value": css})[ELEMENT]

    def click(self, css):
        self.of_session("POST", f"/element/{self.find(css)}/click")

    def write(self, css, text):
        self.of_session("POST", f"/element/{self.find(css)}/value", {"text": text})

    def press(self, *keys):
        """Presses keys one after the other, wherever the focus is."""
        actions = []
        for key in keys:
            value = KEYS.get(key, key)
            actions += [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        self.of_session("POST", "/actions", {"actions": [source]})

    def text(self, css):
        return self.run("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", css)

    def wait(self, what, script, *args, seconds=60):
        """Waits until a script returns something that is true, and returns that."""
        end = time.monotonic() + seconds
        while True:
            value = self.run(script, *args)
            if value:
                return value
            if time.monotonic() > end:
                raise BrowserError(f"{what}: not within {seconds} s; the page says: {self.text('body')}")
            time.sleep(0.05)

    def size(self, width, height):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **metrics)

    def screenshot(self, path):
        pathlib.Path(path).write_bytes(base64.b64decode(self.of_session("GET", "/screenshot")))

    def log(self, kind):
        return self.of_session("POST", "/se/log", {"type": kind})

    def requests(self):
        """Addresses that the page asked for so far, since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]


def start_driver(program):
    """Starts chromedriver on a port that it chooses; returns the process and its address."""
    driver = subprocess.Popen([program, "--port=0"], stdout=subprocess.PIPE, text=True)
    for line in driver.stdout:
        if "was started successfully on port" in line:
            return driver, f"http://127.0.0.1:{line.rsplit(' ', 1)[1].strip().rstrip('.')}"
    raise BrowserError(f"{program} ended with {driver.wait()}")


@contextlib.contextmanager
def browser(width=1440, height=900):
    """A headless window of this size, gone with everything that it kept afterwards."""
    program = shutil.which("chromedriver")
    if program is None:
        raise BrowserError("expected chromedriver in PATH, got none; see tests/browser/fetch.sh")
    driver, base = start_driver(program)
    with tempfile.TemporaryDirectory() as profile:
        arguments = [
            "--headless=new",
            # Containers without user namespaces have no sandbox to offer, and small /dev/shm.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--hide-scrollbars",
            "--force-color-profile=srgb",
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
        ]
        options = {"args": arguments}
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logs}
        page = None
        try:
            opened = Browser(base, None).send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            page = Browser(base, opened["sessionId"])
            page.size(width, height)
            yield page
        finally:
            if page is not None:
                with contextlib.suppress(Exception):
                    page.of_session("DELETE", "")
            driver.terminate()
            driver.wait()
