"""The page in a real browser: what a person does with it, on the service itself. No request leaves the machine, no error is logged."""

import base64

import pytest
from playwright.sync_api import expect

from tests.browsing import IDS, Tab, expected_ids, ids_of, text_of, wait_for_answers, wait_for_ids
from tests.page_world import PageWorld
from tests.served import serving

pytestmark = pytest.mark.browser
TOKEN = "a long enough secret"
QUERY = "a big red circle"


@pytest.fixture(scope="module")
def world(tmp_path_factory, small_world, pretrained, finetuned, command):
    return PageWorld(tmp_path_factory.mktemp("page"), small_world, finetuned, command)


@pytest.fixture(scope="module")
def client(world):
    with serving(*world.words) as client:
        yield client


# ---- a search, and what is behind a click ----------------------------------------------------------------------------


def test_words_find_pictures_with_rank_score_and_caption(tab, client):
    page = tab.open("?rerank=0", ".welcome")
    page.fill("#q", QUERY)
    page.press("#q", "Enter")
    page.wait_for_selector(".grid .result")
    found = client.search(text=QUERY, k=24, rerank=0).json["results"][0]
    assert ids_of(page) == [each["id"] for each in found] and len(found) == 24
    cards = [" ".join(card.split()) for card in page.locator(".grid .result").all_inner_texts()]
    assert cards == [f"{each['rank']} {each['score']:.4f} {each['captions'][0]}" for each in found]
    assert page.evaluate("() => document.querySelector('.grid img').decode().then(() => true)")
    assert page.url.endswith("?q=a+big+red+circle&rerank=0") and page.title().startswith(QUERY)


def test_the_bar_tells_this_search_the_median_and_the_95th_percentile_of_the_last_20(tab):
    page = tab.open(f"?q={QUERY}&rerank=0&k=3", ".timing")
    seen = []
    for _ in range(3):
        with page.expect_response("**/api/search") as answer:
            page.press("#q", "Enter")
        seen.append(answer.value.json()["milliseconds"]["encode"])
        page.wait_for_function(f"() => document.querySelector('.last').textContent.endsWith('last {len(seen) + 1}')")
    this, median, p95 = (float(cell.replace(",", "")) for cell in page.locator("tbody tr").first.locator("td").all_inner_texts())
    assert abs(this - seen[-1]) <= 0.5 and median <= p95
    assert "among 24 pictures with" in text_of(page, ".among")
    values = page.evaluate("() => import('./timings.js').then(({quantile}) => [0.5, 0.95].map((share) => quantile([4, 1, 3, 2], share)))")
    assert values == pytest.approx([2.5, 3.85])  # numpy.percentile's
    page.select_option(".among select", "hnsw")
    page.wait_for_url("**backend=hnsw**")
    page.wait_for_function("() => document.querySelector('.among select').value === 'hnsw' && document.querySelector('.last').textContent.endsWith('last 1')")


def test_a_click_opens_a_picture_with_its_captions_and_regions(tab, client, world):
    page = tab.open(f"?q={QUERY}&k=5", ".grid .result")
    key = ids_of(page)[1]
    page.click(f'.result[data-id="{key}"]')
    page.wait_for_selector("dialog[open] .its-captions")
    assert page.inner_text("#large-name") == key and f"open={key}" in page.url
    assert page.locator(".its-captions li").all_inner_texts() == [world.captions[name]["raw"] for name in world.captions.img2txts[key]]
    regions = client.get(f"/api/item/{key}").json["regions"]
    assert page.locator(".picture .confidence").all_inner_texts() == [f"{each['confidence']:.2f}" for each in regions]
    page.wait_for_selector(".picture[style*=aspect-ratio]")  # it is loaded, and has its size
    drawn, picture = page.locator(".boxes rect").first.bounding_box(), page.locator(".picture img").bounding_box()
    left, top, _, bottom = regions[0]["box"]
    assert drawn["x"] == pytest.approx(picture["x"] + left * picture["width"], abs=3)
    assert drawn["height"] == pytest.approx((bottom - top) * picture["height"], abs=4)
    page.uncheck(".toggle input")
    assert not page.locator(".boxes rect").first.is_visible()

    page.click("text=Find its captions")
    page.wait_for_selector(".captions .result")
    assert ids_of(page) == expected_ids(client, image=key, find="captions", k=5)
    assert not page.locator("dialog").is_visible() and text_of(page, "#asked .name") == key
    page.click("text=pictures like it")
    page.wait_for_selector(".grid .result")
    assert ids_of(page) == expected_ids(client, image=key, find="images", k=5) and key not in ids_of(page)
    assert "each other" in text_of(page, ".notice")


def test_the_pictures_that_words_found_are_asked_for_captions_by_a_click(tab, client):
    page = tab.open(f"?q={QUERY}&k=4&rerank=0", ".grid .result")
    page.check("input[value=picture]", force=True)
    page.wait_for_url("**from=picture**")
    wait_for_answers(page)
    key = ids_of(page)[0]
    page.click(f'.result[data-id="{key}"]')
    page.wait_for_selector(".captions .result")
    assert ids_of(page) == expected_ids(client, image=key, find="captions", k=4)
    words = page.locator(".captions .result .words").first.inner_text()
    page.locator(".captions .result").first.click()
    page.wait_for_selector(".grid .result")
    assert page.input_value("#q") == words and ids_of(page) == expected_ids(client, text=words, k=4, rerank=0)


def test_examples_that_come_late_do_not_cover_what_was_found(tab):
    held = []
    tab.page.route("**/api/failures?*", lambda route: held.append(route))
    page = tab.open("?k=4&models=ab")
    page.wait_for_function("() => !document.querySelector('#ask fieldset#models').hidden")
    page.fill("#q", QUERY)
    page.press("#q", "Enter")
    page.wait_for_selector('[data-model="b"] .result')
    with page.expect_response("**/api/failures?*"):
        held[0].continue_()
    page.unroute("**/api/failures?*")
    page.fill("#q", "")
    page.press("#q", "Enter")
    page.wait_for_selector(".examples a")
    assert page.get_attribute("#results", "class") == "" and page.locator(".result").count() == 0
    page.go_back()
    page.wait_for_selector('[data-model="b"] .result')


def test_a_photo_is_dropped_or_chosen(tab, client, world):
    photo = sorted((world.data / "photos").iterdir())[30]
    expected = [each["id"] for each in client.send_picture(photo.read_bytes(), find="captions", k=6).json["results"][0]]
    page = tab.open("?k=6", ".welcome")
    drop = """(event, [words, name]) => {
        const bytes = Uint8Array.from(atob(words), (letter) => letter.charCodeAt(0));
        const dropped = new DataTransfer();
        dropped.items.add(new File([bytes], name, {type: "image/jpeg"}));
        for (const event of ["dragenter", "dragover", "drop"])
            document.body.dispatchEvent(new DragEvent(event, {dataTransfer: dropped, bubbles: true, cancelable: true}));
    }"""
    page.locator("body").evaluate(drop, [base64.b64encode(photo.read_bytes()).decode(), photo.name])
    page.wait_for_selector(".captions .result")
    assert ids_of(page) == expected and text_of(page, "#asked .name") == photo.name and page.locator("#drop").is_hidden()
    assert page.evaluate("() => document.querySelector('#asked img').decode().then(() => true)")
    page.reload()
    assert "drop or choose it again" in text_of(page, "#results .notice")
    page.set_input_files("#file", photo)
    page.wait_for_selector(".captions .result")
    assert ids_of(page) == expected
    tab.expected = ("status of 400",)
    page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    page.wait_for_selector(".notice.bad")
    assert "is no picture that can be read" in text_of(page, ".notice.bad")


# ---- ranking again, two checkpoints, failures ------------------------------------------------------------------------


def test_arrows_show_how_the_re_ranker_moved_the_results(tab, client):
    page = tab.open(f"?q={QUERY}&k=12", ".grid .moved")
    found = client.search(text=QUERY, k=12).json["results"][0]
    by = [each["first_rank"] - each["rank"] for each in found]
    assert any(by), "the re-ranker moves nothing: nothing is shown"
    assert page.locator(".moved").all_inner_texts() == ["=" if not n else f"{'▲' if n > 0 else '▼'}{abs(n)}" for n in by]
    page.fill("#rerank", "13")
    page.fill("#mix", "0.25")
    page.press("#mix", "Enter")
    page.wait_for_url("**rerank=13**mix=0.25**")
    wait_for_ids(page, expected_ids(client, text=QUERY, k=12, rerank=13, mix=0.25))
    page.uncheck("#rerank-on")
    page.wait_for_selector(".moved", state="detached")
    assert ids_of(page) == expected_ids(client, text=QUERY, k=12, rerank=0) and page.locator("#mix").is_disabled()


def test_two_checkpoints_side_by_side(tab, client):
    page = tab.open(f"?q={QUERY}&k=6&rerank=0", ".grid .result")
    page.check("input[value=ab]", force=True)
    page.wait_for_selector('[data-model="b"] .result')
    a, b = (expected_ids(client, text=QUERY, k=6, rerank=0, model="a"), expected_ids(client, text=QUERY, k=6, rerank=0, model="b"))
    assert (ids_of(page), ids_of(page, "b")) == (a, b)
    common = [key for key in a if key in b]
    assert common and len(common) < 6, "the two find the same or nothing in common: the test shows nothing"
    assert page.eval_on_selector_all('.grid[data-model="a"] li.single', IDS) == [key for key in a if key not in b]
    assert text_of(page, "#status").startswith(f"{len(common)} in common, ")
    twin = page.locator(f'.grid[data-model="a"] li[data-id="{common[0]}"] .twin')
    assert twin.inner_text() == f"B: {b.index(common[0]) + 1}"
    twin.click()
    focused = page.evaluate("() => [document.activeElement.dataset.id, document.activeElement.closest('.grid').dataset.model]")
    assert focused == [common[0], "b"] and page.locator("li.linked").count() == 2
    assert page.locator(".timing").count() == 2


def test_captions_of_two_checkpoints_are_linked_as_pictures_are(tab, client, world):
    key = next(iter(world.captions.img2txts))
    page = tab.open(f"?from=picture&image={key}&k=6&models=ab", '.captions[data-model="b"] .result')
    a, b = (expected_ids(client, image=key, find="captions", k=6, model=model) for model in "ab")
    common = [name for name in a if name in b]
    assert common and len(common) < 6, "the two find the same or nothing in common: the test shows nothing"
    assert text_of(page, "#status") == f"{len(common)} in common, {6 - len(common)} caption{'s' * (len(common) < 5)} only in A, {6 - len(common)} only in B"
    found = ["only A" if name not in b else f"B: {b.index(name) + 1}" for name in a]
    assert page.locator('.captions[data-model="a"] .twin').all_inner_texts() == found
    page.locator('.captions[data-model="a"] li.both .twin').first.click()
    assert page.evaluate("() => document.activeElement.closest('.captions').dataset.model") == "b" and page.locator("li.linked").count() == 2


def test_each_of_two_checkpoints_has_its_re_ranker(tab, client):
    page = tab.open(f"?q={QUERY}&k=12&models=ab", '[data-model="b"] .moved')
    for model in "ab":
        found = client.search(text=QUERY, k=12, model=model).json["results"][0]
        assert ids_of(page, model) == [each["id"] for each in found]
        by = [each["first_rank"] - each["rank"] for each in found]
        assert page.locator(f'[data-model="{model}"] .moved').all_inner_texts() == ["=" if not n else f"{'▲' if n > 0 else '▼'}{abs(n)}" for n in by]
    assert ids_of(page, "b") != expected_ids(client, text=QUERY, k=12, model="b", rerank=0), "it moves nothing: nothing is shown"
    assert [(page.input_value(name), page.get_attribute(name, "placeholder")) for name in ("#rerank", "#mix")] == [("", "20 · 15"), ("", "0 · 0.25")]
    page.fill("#rerank", "12")
    page.press("#rerank", "Enter")
    page.wait_for_url("**rerank=12**")
    for model, mix in (("a", 0), ("b", 0.25)):
        wait_for_ids(page, expected_ids(client, text=QUERY, k=12, rerank=12, mix=mix, model=model), model)
    page.check("input[value=b]", force=True)
    page.wait_for_function("() => document.querySelector('#mix').value === '0.25'")


def test_failures_are_listed_below_the_recall(tab, client, world):
    page = tab.open("", ".welcome")
    page.click("#to-failures")
    page.wait_for_selector(".missed")
    rows = {text.split("\t")[0].strip(): text for text in page.locator(".recall tbody tr").all_inner_texts()}
    recall, bounds = (world.results[1][name]["de"]["IR@1"] for name in ("recall", "intervals"))
    assert f"{recall:.2f}" in rows["B de"] and f"{bounds['low']:.1f}–{bounds['high']:.1f}" in rows["B de"] and "chance" in rows
    page.select_option("select[name=language]", "de")
    page.select_option("select[name=only]", "a_right_b_wrong")
    page.select_option("select[name=at]", "5")
    assert "only=a_right_b_wrong" in page.url and "language=de&at=5" in page.url
    listed = client.get("/api/failures?language=de&only=a_right_b_wrong&k=5&limit=20").json
    assert listed["queries"], "A finds nothing that B does not: nothing is shown"
    expect(page.locator(".missed .query")).to_have_text([each["texts"][each["id"]] for each in listed["queries"]])
    ranks = [text for each in listed["queries"] for text in (f"A rank {each['rank']}", f"B rank {each['second_rank']}")]
    assert page.locator(".outcome > p").all_inner_texts() == ranks
    assert f"of {listed['total']} quer" in text_of(page, ".pages")
    before = page.locator(".missed > li").first.locator(".outcome").nth(1).locator(".wrong a")
    assert [link.get_attribute("aria-label") for link in before.all()] == [f"open {key}" for key in listed["queries"][0]["second_before"]]
    page.locator(".missed .right a").first.click()
    page.wait_for_selector("dialog[open] .its-captions")
    assert page.inner_text("#large-name") == listed["queries"][0]["right"][0]
    page.keyboard.press("Escape")
    page.wait_for_url(lambda address: "open=" not in address)
    page.locator(".missed .query a").first.click()
    page.wait_for_selector(".grid .result")
    assert page.input_value("#q") == listed["queries"][0]["texts"][listed["queries"][0]["id"]]
    page.go_back()
    page.wait_for_selector(".missed")
    page.select_option("select[name=direction]", "i2t")
    page.wait_for_selector(".answers.words .right, #failures > .notice")
    page.select_option("select[name=only]", "all")
    page.select_option("select[name=order]", "best")
    best = client.get("/api/failures?direction=i2t&language=de&only=all&order=best&k=5&limit=20").json["queries"][0]
    expect(page.locator(".missed > li").first.locator(".outcome").first.locator(".right .words")).to_have_text([best["texts"][name] for name in best["right"]])


def test_the_list_of_failures_waits_goes_on_and_ends(tab, client):
    tab.expected = ("ERR_INTERNET_DISCONNECTED",)
    held = []
    tab.page.route("**/api/failures?*", lambda route: held.append(route))
    page = tab.open("?view=failures&only=all&offset=5000&q=blue", "#failures [role=status]")
    assert "Still loading" in text_of(page, "#failures")
    held[0].continue_()
    page.unroute("**/api/failures?*")
    page.wait_for_selector("#failures .notice")
    total = client.get("/api/failures?only=all").json["total"]
    assert text_of(page, "#failures .notice") == f"The list has {total:,} queries, and ends before this place. To the first"
    tab.context.set_offline(True)
    page.click("text=To the first")
    page.wait_for_selector("#service .notice.bad")
    tab.context.set_offline(False)
    page.wait_for_selector(".missed")
    assert page.locator("#service .notice").count() == 0 and f"1–20 of {total:,} queries" in text_of(page, ".pages >> nth=0")
    tab.context.set_offline(True)
    page.select_option("select[name=order]", "best")
    page.wait_for_selector("#service .notice.bad")
    tab.context.set_offline(False)
    page.select_option("select[name=order]", "worst")
    page.wait_for_function("() => !document.querySelector('#service').textContent")
    page.focus(".scrolled")
    page.keyboard.press("ArrowDown")  # scrolls it, and does not go to a result
    assert page.evaluate("document.activeElement.className") == "scrolled"


def test_what_has_the_focus_has_it_in_the_list_that_comes(tab):
    page = tab.open("?view=failures&only=all", ".missed")
    for selector in ("select[name=order]", ".scrolled", ".pages >> nth=-1 >> text=next"):
        held = page.locator(selector).element_handle()
        page.focus(selector)
        if selector.startswith("select"):
            page.keyboard.press("ArrowDown")
        elif "next" in selector:
            page.keyboard.press("Enter")
        else:
            page.evaluate("history.back()")
        page.wait_for_function("old => !old.isConnected", arg=held)
        assert page.locator(selector).evaluate("node => node === document.activeElement")


def test_what_was_asked_of_the_search_and_of_the_list_of_failures_stays(tab):
    page = tab.open("?view=failures&only=all&q=blue", ".missed")
    page.click("#to-search")
    page.wait_for_selector(".grid .result")
    assert page.input_value("#q") == "blue"
    page.click("#to-failures")
    page.wait_for_selector(".missed")
    assert "only=all" in page.url


# ---- keys, links, sizes ----------------------------------------------------------------------------------------------


def test_the_whole_search_by_keys(tab):
    page = tab.open("?rerank=0&k=12", ".welcome")
    page.keyboard.press("/")
    page.keyboard.type(QUERY)
    page.keyboard.press("Enter")
    page.wait_for_selector(".grid .result")
    ids, focused = ids_of(page), "() => document.activeElement.dataset.id"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == ids[0]
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == ids[1]
    columns = page.evaluate("() => getComputedStyle(document.querySelector('.grid')).gridTemplateColumns.split(' ').length")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == ids[1 + columns]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open] .its-captions")
    assert page.inner_text("#large-name") == ids[1]
    page.keyboard.press("ArrowRight")
    page.wait_for_function("id => document.querySelector('#large-name').textContent === id", arg=ids[2])
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="hidden")
    page.wait_for_url(lambda address: "open=" not in address)
    assert page.evaluate(focused) == ids[2]
    page.keyboard.press("/")
    assert page.evaluate("() => document.activeElement.id") == "q"
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.activeElement.id") != "q" and page.input_value("#q") == QUERY


def test_a_link_shows_the_same_and_back_and_forward_work(browser, client, tab):
    page = tab.open(f"?q={QUERY}&k=7&models=ab&backend=hnsw&rerank=9&mix=0.5", '[data-model="b"] .result')
    key = ids_of(page, "b")[2]
    page.click(f'[data-model="b"] .result[data-id="{key}"]')
    page.wait_for_selector("dialog[open] .its-captions")
    link, shown = page.url, (ids_of(page), ids_of(page, "b"), page.locator(".moved").all_inner_texts())
    other = Tab(browser, client)
    try:
        again = other.open(link.removeprefix(other.address), "dialog[open] .its-captions")
        again.wait_for_selector('[data-model="b"] .result')
        assert (ids_of(again), ids_of(again, "b"), again.locator(".moved").all_inner_texts()) == shown
        assert again.inner_text("#large-name") == key and again.locator("[aria-label='Results of B'] .moved").count() == 7
        values = [again.input_value(name) for name in ("#q", "#k", "#rerank", "#mix", ".among select")]
        assert values == [QUERY, "7", "9", "0.5", "hnsw"] and again.is_checked("input[value=ab]")
    finally:
        other.close()
    page.go_back()
    page.wait_for_selector("dialog", state="hidden")
    page.fill("#q", "blue")
    page.press("#q", "Enter")
    page.wait_for_url("**q=blue**")
    page.go_back()
    for model, ids in zip("ab", shown):
        wait_for_ids(page, ids, model)
    page.wait_for_function("words => document.querySelector('#q').value === words", arg=QUERY)
    page.go_forward()
    page.wait_for_function("() => document.querySelector('#q').value === 'blue'")


def test_links_to_failures_and_to_pictures_like_one_show_them(tab, client, world):
    page = tab.open("?view=failures&language=de&only=all&order=best&at=5", ".missed")
    listed = client.get("/api/failures?language=de&only=all&order=best&k=5&limit=20").json["queries"]
    expect(page.locator(".missed .query")).to_have_text([each["texts"][each["id"]] for each in listed])
    chosen = {name: page.input_value(f"select[name={name}]") for name in ("direction", "language", "only", "order", "at")}
    assert chosen == {"direction": "t2i", "language": "de", "only": "all", "order": "best", "at": "5"}
    key = next(iter(world.captions.img2txts))
    tab.open(f"?from=picture&image={key}&find=images&k=5", ".grid .result")
    assert ids_of(page) == expected_ids(client, image=key, find="images", k=5) and text_of(page, "#asked .name") == key


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("address", [f"?q={QUERY}&models=ab", f"?q={QUERY}&open=KEY", "?from=picture&image=KEY", "?view=failures", ""])
def test_nothing_is_wider_than_the_window(tab, world, width, address):
    key = next(iter(world.captions.img2txts))
    tab.page.set_viewport_size({"width": width, "height": 800})
    page = tab.open(address.replace("KEY", key), ".result, .welcome, .missed")
    page.wait_for_load_state("networkidle")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert page.evaluate("() => [...document.querySelectorAll('img')].every((image) => image.hasAttribute('alt'))")
    unnamed = "nodes => nodes.filter((node) => node.offsetParent && !node.labels?.length && !node.ariaLabel && !node.textContent.trim()).length"
    assert page.eval_on_selector_all("button, input, select, a", unnamed) == 0


def test_a_phone_has_two_columns_and_the_settings_folded(tab):
    tab.page.set_viewport_size({"width": 400, "height": 800})
    page = tab.open(f"?q={QUERY}", ".grid .result")
    assert page.evaluate("() => getComputedStyle(document.querySelector('.grid')).gridTemplateColumns.split(' ').length") == 2
    assert not page.locator("#k").is_visible()
    page.click("#settings summary")
    page.fill("#k", "3")
    page.press("#k", "Enter")
    page.wait_for_function("() => document.querySelectorAll('.grid .result').length === 3")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_by_day_and_by_night(browser, client, scheme):
    tab = Tab(browser, client, color_scheme=scheme)
    page = tab.open(f"?q={QUERY}&models=ab", '[data-model="b"] .result')
    contrast = """([ink, behind]) => {
        const light = (name) => {
            const [r, g, b] = getComputedStyle(document.documentElement).getPropertyValue(name).match(/[0-9a-f]{2}/gi)
                .map((pair) => parseInt(pair, 16) / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
        };
        return Math.max(light(ink) / light(behind), light(behind) / light(ink));
    }"""
    inks = ["--ink", "--faint", "--accent", "--a", "--b", "--right", "--wrong"]
    pairs = [(ink, behind) for ink in inks for behind in ("--surface", "--back")] + [("--on-accent", "--accent"), ("--ink", "--word"), ("--ink", "--bad"), ("--faint", "--soft")]
    assert {pair: page.evaluate(contrast, pair) for pair in pairs if page.evaluate(contrast, pair) < 4.5} == {}  # WCAG AA
    behind = page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
    assert (max(map(int, behind.strip("rgb()").split(","))) < 60) == (scheme == "dark")
    tab.close()


# ---- a service with less --------------------------------------------------------------------------------------------


def test_a_service_with_a_token_and_without_pictures(browser, world):
    with serving(*world.bare, *world.other, "--token", TOKEN) as client:
        tab = Tab(browser, client)
        page = tab.open(f"?q=circle&token={TOKEN.replace(' ', '+')}", ".grid .result")
        assert page.url == f"{tab.address}?q=circle"
        assert text_of(page, ".grid .result .frame >> nth=0") == "no picture file" and page.locator("#to-failures").is_hidden()
        page.locator(".grid .result").first.click()
        page.wait_for_selector("dialog[open] .about .faint")
        assert [text.strip() for text in page.locator(".actions a").all_inner_texts()] == ["Find pictures like it"]
        page.click("text=Find pictures like it")
        page.wait_for_selector("#asked .finds")
        assert text_of(page, "#asked .finds .faint") == "no captions are served"
        page.goto(page.url.replace("&find=images", ""))  # a link from where there are captions
        page.wait_for_selector(".grid .result")
        assert text_of(page, "#asked [aria-current]") == "pictures like it" and not page.locator(".notice.bad").count()
        page.goto(f"{tab.address}?q=circle")
        page.wait_for_selector(".grid .result")
        assert page.locator("#rerank-on").is_hidden()
        page.check("input[value=ab]", force=True)
        page.wait_for_selector('[data-model="b"] .moved')
        assert "no re-ranker is served for A" in text_of(page, "[aria-label='Results of A'] .notice") and page.locator("#rerank-on").is_checked()
        assert page.locator('[data-model="a"] .moved').count() == 0 and page.locator('[data-model="b"] li.both').count()
        tab.close()
