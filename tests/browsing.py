"""The page of a search service in a real browser, and what stands on it. No request leaves the machine, no error is logged."""

import contextlib
import os
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
IDS = "nodes => nodes.map(node => node.dataset.id)"
PATIENCE = 60_000  # milliseconds: a busy machine is slow, and nothing waits for long where all is well
expect.set_options(timeout=PATIENCE)


@contextlib.contextmanager
def chromium():
    """The system's Chromium without a window; a test that wants it is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield found
        found.close()


class Tab:
    """A tab at the service, with what it logged and asked for."""

    def __init__(self, browser, client, **settings):
        self.address = f"http://127.0.0.1:{client.port}/"
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.errors, self.hosts, self.expected = [], set(), ()
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda asked: self.hosts.add(asked.url.split("/")[2]) if not asked.url.startswith("blob:") else None)

    def open(self, address="", until=""):
        self.page.goto(self.address + address)
        if until:
            self.page.wait_for_selector(until)
        return self.page

    def close(self):
        """End, and look at what was logged: what is ``expected`` aside, nothing may be."""
        self.context.close()
        assert self.hosts == {self.address.split("/")[2]}, self.hosts
        unexpected = [line for line in self.errors if not any(words in line for words in self.expected)]
        assert not unexpected, unexpected


def ids_of(page, model="a"):
    return page.eval_on_selector_all(f'[data-model="{model}"] .result', IDS)


def wait_for_ids(page, ids, model="a"):
    """Until these are the results, in this order."""
    shown = "([model, ids]) => [...document.querySelectorAll(`[data-model='${model}'] .result`)].map(node => node.dataset.id).join() === ids.join()"
    page.wait_for_function(shown, arg=[model, ids])


def wait_for_answers(page):
    """Until what was asked last is shown: until then what was there before is, in grey, and what is clicked in it is asked of that."""
    page.wait_for_selector("#results:not(.waiting)")


def expected_ids(client, **asked):
    reply = client.search(**asked)
    assert reply.status == 200, reply.body
    return [each["id"] for each in reply.json["results"][0]]


def text_of(page, selector):
    return " ".join(page.inner_text(selector).split())
