"""The demo in real Chromium: an image goes in, its overlay appears, the sliders work, nothing is asked of elsewhere."""

import subprocess
import sys
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from segsweep.inference.predict import Predictor, find_images, predict

pytestmark = pytest.mark.browser

APPEARS = 60  # seconds, on a busy machine
ASKED = "return performance.getEntriesByType('resource').map(entry => entry.name)"
SET = """
arguments[0].value = arguments[1];
for (const kind of ['input', 'change']) arguments[0].dispatchEvent(new Event(kind, {bubbles: true}));"""


@pytest.fixture
def page(browser, trained):
    command = [sys.executable, "-m", "segsweep", "demo", str(trained.folder), "--device=cpu", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            browser.get(process.stdout.readline().removeprefix("demo").strip())
            yield browser
        finally:
            process.terminate()
        assert process.wait(30) == 0


def test_upload_look_and_slide(page, trained, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(page, APPEARS)

    def found(selector):
        return next(iter(page.find_elements(By.CSS_SELECTOR, selector)), None)

    def overlay():
        image = found("#overlay img")
        return image and image.get_attribute("src")

    def foreground():
        return float(found("#shares").text.split()[-2])

    image = trained.root / "images" / "003.png"
    waiting.until(lambda _: found("#image input[type=file]")).send_keys(str(image))
    first = waiting.until(lambda _: overlay())
    waiting.until(lambda _: found("#shares").text)

    # The page says of the image what `segsweep predict` does.
    predictor = Predictor(trained.folder / "best.safetensors", device="cpu")
    (outcome,) = predict(predictor, find_images([str(image)]), tmp_path)
    share = 100 * np.array(Image.open(outcome.mask)).mean()
    assert foreground() == pytest.approx(share, abs=0.06)

    before = foreground()
    page.execute_script(SET, found("#threshold input[type=number]"), "0.99")
    waiting.until(lambda _: foreground() < before)
    second = waiting.until(lambda _: overlay() != first and overlay())
    page.execute_script(SET, found("#opacity input[type=number]"), "1")
    waiting.until(lambda _: overlay() != second)

    (tmp_path / "notes.png").write_text("not an image")
    found("#image button[aria-label='Clear'], #image button[aria-label='Remove']").click()
    waiting.until(lambda _: found("#image input[type=file]")).send_keys(str(tmp_path / "notes.png"))
    waiting.until(lambda _: "notes.png: not an image" in found("body").text)

    found("#examples img").click()
    waiting.until(lambda _: overlay())
    hosts = {urlsplit(address).hostname for address in page.execute_script(ASKED)} - {None}
    assert hosts <= {"127.0.0.1", "localhost"}
