"""What the page says when something is not as it should be, in a real browser: answers that are late, wrong, none or of another index."""

import os
import shutil
import time

import pytest
from playwright.sync_api import expect

from tests.browsing import text_of
from tests.served import serving

pytestmark = pytest.mark.browser
QUERY = "a big red circle"


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """Files of an index of the first checkpoint, and of the second; the service builds both."""
    folder = tmp_path_factory.mktemp("states")
    return folder / "a/data.mdb", folder / "b/data.mdb"


@pytest.fixture(scope="module")
def client(indexes, small_world, pretrained, finetuned):
    words = ["--checkpoint", finetuned / "last", "--index", indexes[0].parent, "--second-checkpoint", pretrained / "last", "--second-index", indexes[1].parent]
    with serving(*words, "--regions", small_world / "regions", "--photos", small_world / "photos", "--backends", "exact", "hnsw") as client:
        yield client


def test_words_that_the_model_does_not_know_are_said(tab):
    page = tab.open("?q=☃ circle&k=2", ".grid .result")
    assert "not in the model's vocabulary, and so not looked for: '☃'" in text_of(page, ".notice")


@pytest.mark.parametrize(
    ("address", "words"),
    [("k=5000", "k is 5000, expected at most 1,000"), ("k=many", "k is 'many'"), ("backend=faiss", "expected one of those served"), ("rerank=-1", "rerank is -1"), ("models=c", "model is 'c'")],
)
def test_a_link_that_asks_for_what_is_not_there_says_so(tab, address, words):
    tab.expected = ("status of 400",)
    page = tab.open(f"?q={QUERY}&{address}", ".notice.bad")
    assert words in text_of(page, ".notice.bad")
    if "backend" in address:
        page.click("text=Search with exact")
        page.wait_for_selector(".grid .result")


def test_an_answer_without_results_says_that_nothing_was_found(tab):
    def emptied(route):
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"results": [[]], "count": 0})

    tab.page.route("**/api/search", emptied)
    page = tab.open(f"?q={QUERY}", "#results .notice")
    assert text_of(page, "#results .notice").startswith("Nothing found")


def test_what_is_typed_is_shown_as_text(tab):
    page = tab.open("", ".welcome")
    page.fill("#q", "<img src=x onerror=alert(1)> circle")
    page.press("#q", "Enter")
    page.wait_for_selector(".grid .result")
    assert page.locator("img[src=x]").count() == 0


def test_a_busy_service_is_asked_again_and_says_why_it_waits(tab):
    tab.expected = ("status of 503",)
    reasons = iter(["too many wait", "some wait"])

    def busy_twice(route):
        if (reason := next(reasons, None)) is None:
            route.continue_()
        else:
            route.fulfill(status=503, headers={"Retry-After": "600"}, json={"error": reason})

    tab.page.clock.install()  # ten minutes pass when it is said
    tab.page.route("**/api/search", busy_twice)
    page = tab.open(f"?q={QUERY}&k=2")
    for reason in ("too many wait", "some wait"):
        expect(page.locator("#status")).to_have_text(f"{reason}. It is asked again in 600 s. Stop")
        page.clock.fast_forward(600_000)
    page.wait_for_selector(".grid .result")
    assert text_of(page, "#status") == ""


def test_another_backend_than_exact_that_cannot_answer_is_left_by_a_click(tab):
    tab.expected = ("status of 503",)
    tab.page.route("**/api/search", lambda route: route.fulfill(status=503, headers={"Retry-After": "60"}, json={"error": "it sleeps"}))
    page = tab.open(f"?q={QUERY}&k=2&backend=hnsw", "#status button")
    assert text_of(page, "#status") == "it sleeps. It is asked again in 60 s. Stop Search with exact"
    page.unroute("**/api/search")
    page.click("text=Search with exact")
    page.wait_for_selector(".grid .result")
    assert page.input_value(".among select") == "exact" and text_of(page, "#status") == ""


def test_a_slow_answer_says_that_it_is_waited_for_and_can_be_stopped(tab):
    held = []
    tab.page.route("**/api/search", lambda route: held.append(route))
    page = tab.open(f"?q={QUERY}&k=2", "#status button")
    assert "Still searching" in text_of(page, "#status")
    page.click("text=Stop")
    assert "Stopped" in text_of(page, "#status")
    page.unroute("**/api/search")
    page.click("text=Try again")
    page.wait_for_selector(".grid .result")
    assert len(held) == 1


def test_the_beginning_is_not_grey_after_a_search_that_was_left(tab):
    page = tab.open(f"?q={QUERY}&k=2&models=ab", '[data-model="b"] .result')
    page.route("**/api/search", lambda route: None)
    page.fill("#q", "blue")
    page.press("#q", "Enter")
    page.wait_for_selector("#results.waiting")
    page.click("h1 a")
    page.wait_for_selector(".welcome")
    assert page.get_attribute("#results", "class") == "" and text_of(page, "#status") == ""


def test_a_link_to_a_large_picture_leads_on_to_the_results_that_come_after_it(tab, client):
    a, b = (client.search(text=QUERY, k=4, model=model).json["results"][0] for model in "ab")
    held = []
    tab.page.route("**/api/search", lambda route: held.append(route))
    page = tab.open(f"?q={QUERY}&k=4&models=ab&open={a[1]['id']}", "dialog[open] .its-regions")
    assert page.locator(".step").count() == 0 and len(held) == 2
    for route in held:
        route.continue_()
    page.wait_for_selector(".step.next")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("id => document.querySelector('#large-name').textContent === id", arg=a[2]["id"])
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="hidden")
    page.locator('[data-model="b"] .result').nth(1).click()
    page.wait_for_selector("dialog[open] .its-regions")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("id => document.querySelector('#large-name').textContent === id", arg=b[2]["id"])
    page.keyboard.press("ArrowRight")
    page.wait_for_function("id => document.querySelector('#large-name').textContent === id", arg=b[3]["id"])
    assert page.locator(".step.next").count() == 0 and page.locator(".step.previous").count() == 1


def test_a_link_to_a_picture_that_is_not_there_says_so(tab):
    tab.expected = ("status of 404",)
    page = tab.open("?open=nothing.npz", "dialog[open] .notice.bad")
    assert text_of(page, "dialog .about") == "no image 'nothing.npz' in the gallery"
    page.keyboard.press("Escape")
    page.wait_for_url(lambda address: "open=" not in address)


def test_a_photo_with_more_bytes_than_are_taken_is_not_sent(tab, client):
    info = client.get("/api/info").json
    info["limits"]["picture_bytes"] = 9000  # as if: megabytes come slowly into the browser
    tab.page.route("**/api/info", lambda route: route.fulfill(json=info))
    page = tab.open("", ".welcome")
    page.set_input_files("#file", {"name": "big.jpg", "mimeType": "image/jpeg", "buffer": bytes(5000)})
    page.wait_for_selector(".notice.bad")
    assert text_of(page, ".notice.bad").startswith("big.jpg has 5,000 bytes, expected at most 4,904: scale it down.")


def test_without_an_evaluation_a_link_to_its_failures_says_so(tab):
    page = tab.open("?view=failures", "#failures .notice")
    assert "started without --evaluation" in text_of(page, "#failures")


def test_a_service_that_is_gone_is_waited_for(tab):
    tab.expected = ("ERR_INTERNET_DISCONNECTED",)
    page = tab.open(f"?q={QUERY}&k=2", ".grid .result")
    tab.context.set_offline(True)
    page.fill("#q", "blue")
    page.press("#q", "Enter")
    page.wait_for_selector("#service .notice.bad")
    assert "does not answer" in text_of(page, "#service")
    tab.context.set_offline(False)
    page.wait_for_selector("#service .notice", state="detached")
    page.wait_for_function("() => document.querySelector('#results').className === '' && document.querySelector('.grid')")


def test_what_is_asked_before_the_service_answers_is_found_when_it_does(tab):
    tab.expected = ("ERR_FAILED",)
    tab.page.route("**/api/*", lambda route: route.abort())
    page = tab.open("", "#service .notice.bad")
    page.fill("#q", QUERY)
    page.press("#q", "Enter")
    assert "q=a+big" in page.url
    page.unroute("**/api/*")
    page.wait_for_selector(".grid .result")
    assert text_of(page, "#service") == "" and page.input_value("#q") == QUERY


FAILING = """async (name) => {
    window.fetch = async () => ({ok: true, status: 200, json: () => Promise.reject(name ? new DOMException("", name) : new TypeError("lost"))});
    return (await import("/api.js")).ask("api/info").catch((error) => error.constructor.name + error.message);
}"""


def test_an_answer_that_breaks_off_is_none_and_one_that_was_left_is_not_reported(tab):
    page = tab.open("", ".welcome")
    assert page.evaluate(FAILING, "") == "GoneThe service does not answer."
    assert page.evaluate(FAILING, "AbortError").startswith("DOMException")


def test_an_index_of_another_model_is_said_while_the_old_one_answers(tab, client, indexes):
    page = tab.open(f"?q={QUERY}&k=2", ".grid .result")
    kept = indexes[0].with_name("kept")
    os.rename(indexes[0], kept)
    shutil.copy(indexes[1], indexes[0])
    try:
        until = time.monotonic() + 120
        while not client.get("/api/info").json["models"]["a"]["images"]["refused"] and time.monotonic() < until:
            time.sleep(0.1)
        page.press("#q", "Enter")
        page.wait_for_selector("#service .notice.bad")
        assert "is not searched" in text_of(page, "#service") and page.locator(".grid .result").count() == 2
    finally:
        os.replace(kept, indexes[0])
