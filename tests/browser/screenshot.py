"""Makes docs/page.png: `python3 tests/browser/screenshot.py URL FILE`, with a server that runs."""

import sys
import time

from webdriver import browser

QUESTION = "Tell me a story about a lemon tree."
REPLIED = "const f = document.querySelector('.turn.assistant .foot'); return f && f.textContent"


def main():
    url, file = sys.argv[1:]
    with browser(1400, 880) as page:
        page.go(url)
        page.wait("connected", "return document.getElementById('status').textContent === 'connected'")
        page.write("#message", QUESTION)
        page.press("enter")
        page.wait("a reply", REPLIED, seconds=300)
        # A second one, so that the times of steps are those of a machine at work.
        page.write("#message", "Who are you?")
        page.press("enter")
        page.wait("the end", "return document.getElementById('stop').hidden")
        page.run("document.querySelector('#log').scrollTop = 0")
        cell = "document.querySelector('#plan [data-phase=decode] .cell:nth-of-type(31)')"
        page.run(f"{cell}.dispatchEvent(new MouseEvent('mouseenter'))")
        time.sleep(1.5)
        page.screenshot(file)


main()
