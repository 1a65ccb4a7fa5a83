"""What the page looks like after `make web`, on a wide screen and on a phone, as one image.

python -m tests.web.screenshot docs/images/web.png
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.web.browser import Browser
from tests.web.node import WEB
from tests.web.server import serving

WIDE, PHONE = (920, 560), (360, 760)
MARGIN, BACKGROUND = 20, (120, 124, 132)
DONE = 'document.getElementById("status").textContent.startsWith("Done")'


def main(file: str) -> None:
    shots = []
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        Browser(Path(folder)) as browser,
        serving(WEB) as site,
    ):
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        browser.open(site.url)
        browser.evaluate('document.querySelector("button[type=submit]").click()')
        browser.wait(DONE, 300)
        for size in (WIDE, PHONE):
            path = Path(folder) / "shot.png"
            browser.screenshot(path, *size)
            shots.append(Image.open(path).convert("RGB").crop((0, 0, *size)))
    width, height = sum(shot.width + MARGIN for shot in shots), max(shot.height for shot in shots)
    sheet = Image.new("RGB", (width + MARGIN, height + 2 * MARGIN), BACKGROUND)
    left = MARGIN
    for shot in shots:
        sheet.paste(shot, (left, MARGIN + (height - shot.height) // 2))
        left += shot.width + MARGIN
    sheet.save(file, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
