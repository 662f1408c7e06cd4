"""``petx demo``'s page as a person and as a program use it: in headless Chromium, and by gradio's client.

Each needs what ``pip install petx[demo]`` brings; the browser also selenium, chromium and chromedriver (on Debian
``apt-get install chromium chromium-driver``).
"""

import shutil
import time

import pytest

from petx.train import demo

pytest.importorskip("gradio", reason="the page is gradio's: pip install gradio")
from tests.train.test_demo import made, models  # noqa: E402, F401  (fixtures)

pytestmark = pytest.mark.slow
QUESTION = "what color is it?"


@pytest.fixture(scope="module")
def served(models):  # noqa: F811
    page = demo.page(models)
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, inbrowser=False, quiet=True)
    yield address
    page.close()


def test_a_program_asks_every_model(served, made, models):  # noqa: F811
    client = pytest.importorskip("gradio_client")
    image = client.handle_file(str(made / "data" / "images" / "0.png"))
    caller = client.Client(served, verbose=False)
    table, _ = caller.predict(image, QUESTION, api_name="/ask")
    assert [row[0] for row in table["data"]] == [row.title for row in models]
    with pytest.raises(Exception, match="ask a question first"):
        caller.predict(image, " ", api_name="/ask")


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver: on Debian apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "no-proxy-server", "disable-dev-shm-usage", "window-size=1200,800"):
        options.add_argument(f"--{flag}")
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def test_a_person_asks_every_model(served, made, models, browser):  # noqa: F811
    browser.get(served)
    button = soon(lambda: next(b for b in browser.find_elements("css selector", "button") if b.text == "answer"))
    button.click()
    soon(lambda: "choose an image first" in text_of(browser))

    file = browser.find_element("css selector", "input[type=file]")  # the image's
    file.send_keys(str(made / "data" / "images" / "0.png"))
    picture = soon(lambda: next(iter(browser.find_elements("css selector", "img[src*='0.png']"))))
    browser.find_element("css selector", "textarea").send_keys(QUESTION)
    button.click()
    soon(lambda: all(row.title in text_of(browser) for row in models))
    assert picture.is_displayed()


def text_of(browser):
    return browser.find_element("css selector", "body").text


def soon(look, seconds=120):
    """What ``look()`` finds, once it does."""
    end = time.monotonic() + seconds
    while True:
        try:
            if found := look():
                return found
        except Exception:  # the page is not there yet, or was drawn anew
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, "not seen in time"
        time.sleep(0.2)
