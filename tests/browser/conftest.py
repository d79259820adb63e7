"""Real JupyterLab for pytest: one server and one page a session, a notebook with its kernel a test.

Reusing the page is what makes a test cost seconds instead of tens of them.
"""

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright
from rig import CHROMIUM, CHROMIUM_ARGS, Lab, Notebook

OURS = re.compile(r"widget|bqplot|ot_notebook|ot-|blob:", re.IGNORECASE)
"""Errors of the console that are ours; the lab itself logs some now and then."""

EXPECTED = re.compile("model not found|No version of module anywidget is registered")
"""Logged when a reloaded page draws an output before it has fetched the models (it draws again),
and where a test has taken anywidget away."""


expect.set_options(timeout=20_000)  # a machine may be busy; what is there is found at once


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.fixture(scope="session")
def chromium():
    if not CHROMIUM.exists():
        reason = f"{CHROMIUM} does not exist; install Chromium or set OT_CHROMIUM"
        if os.environ.get("OT_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory, chromium):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        lab.wait()
        yield lab
    finally:
        lab.stop()


@pytest.fixture(scope="session")
def core_lab(tmp_path_factory, chromium):
    """A front end that loads no anywidget modules."""
    lab = Lab(tmp_path_factory.mktemp("core_lab"), disabled_extensions=["anywidget"])
    try:
        lab.wait()
        yield lab
    finally:
        lab.stop()


@pytest.fixture(scope="session")
def page(lab, chromium):
    page = lab.page(chromium)
    yield page
    page.context.close()


@pytest.fixture
def notebook(lab, page):
    """An empty notebook on the shared page. An error of ours in the console fails the test."""
    page.set_viewport_size({"width": 1280, "height": 1000})
    notebook = Notebook(lab, page)
    yield notebook
    finish(notebook)


def finish(notebook):
    errors = [text for text in notebook.console if OURS.search(text) and not EXPECTED.search(text)]
    notebook.theme(dark=False)
    notebook.close()
    assert errors == []


@pytest.fixture
def finishing():
    """Check and close a notebook that a test opened by itself."""
    return finish
