"""Make images/demo.png: the demo in a browser, after a question about images/crowded.png.

Needs Chromium, and a demo that runs: ``llava demo``.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.errors import UserError
from llava.options import CommandParser
from llava.utils import exit_on_user_error

IMAGES = Path(__file__).parents[1] / "images"
QUESTIONS = ("What shape is the green object?", "What shape is the yellow object?")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser() -> str:
    """Return the program of a browser.

    Raises:
        UserError: If there is none.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UserError(f"no browser is found; accepted: {', '.join(BROWSERS)}")
    return browser


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Ask two questions, and take a picture of the page.

    Raises:
        UserError: If there is no browser, or no demo.
    """
    parser = CommandParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:7860/", help="of the demo")
    parser.add_argument("--output", type=Path, default=IMAGES / "demo.png")
    options = parser.parse_args(argv)
    browser = find_browser()
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1360, "height": 740})
        try:
            page.goto(options.url)
        except Error as error:
            raise UserError(f"there is no demo at {options.url}: start `llava demo` first") from error
        page.set_input_files("#image input[type=file]", IMAGES / "crowded.png")
        page.wait_for_selector("#image img")
        for number, question in enumerate(QUESTIONS, start=1):
            page.fill("#question textarea", question)
            page.click("#ask")
            page.wait_for_function(
                "number => document.querySelectorAll('#chat .bot').length >= number", arg=number
            )
            page.wait_for_timeout(2000)  # milliseconds, for the picture to be drawn
        page.screenshot(path=options.output)
        chromium.close()


if __name__ == "__main__":
    sys.exit(main())
