"""The web page as people use it, in headless Chromium. Facts come as JSON on standard input: `url` of a
server without a key, whose model runs on cpu0 and ref0, `keyed_url` and `key` of one with a key, `prompt`
and its greedy `reply`."""

import json
import sys

from webdriver import browser

CONNECTED = "return document.getElementById('status').textContent === 'connected'"
REPLIED = "const f = document.querySelectorAll('.turn.assistant .foot')[arguments[0]]; return f && f.textContent"
THEME = "return document.documentElement.dataset.theme"
FOCUS = "const e = document.activeElement; return e.id || e.className"


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def tab_to(page, name, most=60):
    """Presses the tabulator until the element has the focus: it can be reached without a mouse."""
    for _ in range(most):
        if page.run(FOCUS) == name:
            return
        page.press("tab")
    raise AssertionError(f"{name} cannot be reached by the tabulator; the focus is at {page.run(FOCUS)}")


def chat(page, facts):
    page.wait("connected", CONNECTED)
    check(page.run(FOCUS) == "message", "the message box has the focus at first")
    page.run("document.getElementById('temperature').value = 0")
    # What is told while the reply grows.
    page.run(
        "window.lengths = new Set(); new MutationObserver(() => { const c ="
        " document.querySelector('.turn.assistant .content'); if (c) lengths.add(c.textContent.length); })"
        ".observe(document.getElementById('log'), {childList: true, subtree: true, characterData: true})"
    )
    page.press(*facts["prompt"], "enter")
    foot = page.wait("a reply", REPLIED, 0)
    check(page.text(".turn.assistant .content") == [facts["reply"]], page.text(".turn .content"))
    check(page.text(".turn.user .content") == [facts["prompt"]], page.text(".turn .content"))
    check("tokens/s" in foot and "decode cpu0" in foot, foot)
    check(len(page.run("return [...lengths]")) >= 5, "the reply came in pieces")
    page.wait("the request among the recent", "return document.querySelector('#recent .outcome.stop')")


def stop(page):
    page.run("document.getElementById('max-tokens').value = 1500")
    # What a model says, and what people write, is text.
    page.write("#message", "<img src=x onerror=alert(1)> Tell me a long story.")
    page.press("enter")
    page.wait("the reply begins", "const c = document.querySelectorAll('.turn.assistant .content')[1]; return c && c.textContent")
    page.press("escape")
    foot = page.wait("the reply ends", REPLIED, 1)
    check(foot == "stopped" or "tokens/s" in foot, foot)
    check(page.run("return document.querySelectorAll('#log img').length") == 0, "markup was taken as such")


def plan(page):
    page.wait("the plan", "return document.querySelectorAll('#plan .cell').length > 0")
    for phase in ["prefill", "decode"]:
        cells = page.run(
            "return [...document.querySelectorAll(`#plan [data-phase=${arguments[0]}] .cell`)].map(c => c.ariaLabel)", phase
        )
        check(len(cells) == 34, f"{phase}: a cell per part, got {len(cells)}")
        there = [label for label in cells if label.endswith(": ref0")]
        wanted = ["layer 3, feed-forward: ref0"] if phase == "decode" else []
        check(there == wanted, f"{phase}: {there}")
    # By keyboard: from the first cell to the right and down; the text beside says what it is.
    page.run("document.querySelector('#plan [data-phase=decode] .cell').focus()")
    page.press("right", "right", "down")
    detail = "return document.querySelector('#plan [data-phase=decode] .detail').textContent"
    said = page.run(detail)
    check(said.startswith("blk.1.attn: ") and "cpu0" in said and "measured" in said, said)
    times = page.text("#plan [data-phase=decode] .segments .times")
    check(len(times) == 3 and all("measured" in time for time in times), times)
    devices = page.run("return [...document.querySelectorAll('.device')].map(d => d.dataset.device)")
    check(devices == ["cpu0", "ref0"], devices)


def what_if(page):
    page.run("document.getElementById('policy').value = 'latency'; document.getElementById('profile').value = 'strix-point'")
    page.click("#what-if button")
    page.wait("the other plan", "return document.querySelectorAll('#answer .cell').length")
    chips = set(page.text("#answer .legend .chip"))
    check(chips and chips <= {"cpu0", "gpu0", "npu0"}, chips)


def dark(page):
    before = page.run(THEME)
    page.run("document.getElementById('model').focus()")
    tab_to(page, "theme")
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = page.run(ground)
    page.press("enter")
    check(page.run(THEME) == "dark" and before == "light", page.run(THEME))
    check(page.run(ground) != light, "the colours changed")
    page.of_session("POST", "/refresh", {})
    check(page.run(THEME) == "dark", "it is kept")
    page.wait("connected again", CONNECTED)


def phone(page):
    page.size(360, 740)
    page.click("#view-machine")
    page.wait("tiles", "return document.querySelectorAll('#tiles .tile').length")
    width = page.run("return document.documentElement.scrollWidth")
    check(width <= 360, f"wider than a phone: {width}")
    page.click("#view-chat")
    check(page.run("return document.getElementById('message').offsetParent !== null"), "the chat is there")
    page.size(1440, 900)


def keyed(page, facts):
    page.go(facts["keyed_url"])
    page.wait("the question for a key", "return document.getElementById('key-dialog').open")
    page.write("#key", "wrong")
    page.press("enter")
    page.wait("wrong keys are told", "return document.getElementById('key-error').textContent")
    page.write("#key", facts["key"])
    page.press("enter")
    page.wait("connected with the key", CONNECTED)
    check(page.run("return Object.values(localStorage).includes(arguments[0])", facts["key"]) is False, "kept for good")


def main():
    facts = json.load(sys.stdin)
    with browser() as page:
        page.go(facts["url"])
        for part in [lambda page: chat(page, facts), plan, stop, what_if, dark, phone]:
            part(page)
        errors = [entry for entry in page.log("browser") if entry["level"] == "SEVERE"]
        check(errors == [], errors)
        keyed(page, facts)
        # The refusals of the server with a key are errors to the browser, and nothing else is.
        errors = [entry["message"] for entry in page.log("browser") if entry["level"] == "SEVERE"]
        check(all("401" in message for message in errors), errors)
        own = (facts["url"], facts["keyed_url"], "chrome://", "chrome-", "data:", "about:")
        asked = page.requests()
        check(any(url.startswith(facts["url"]) for url in asked), "requests are seen")
        outside = [url for url in asked if not url.startswith(own)]
        check(outside == [], outside)
    print("ok")


main()
