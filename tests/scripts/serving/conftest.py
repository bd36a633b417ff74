"""A browser, and a tab at what a file of tests serves as ``client``."""

import pytest

from tests.browsing import Tab, chromium


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def tab(browser, client):
    found = Tab(browser, client)
    yield found
    found.close()
