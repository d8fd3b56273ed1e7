"""Picture of a run's report for the README: the top of the page, with the titles of its sections in the PNG's text.

    make run
    python experiments/report_picture.py runs/ppca-wine          # docs/report.png; needs Chromium

A test compares these titles with the titles of the present page.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "report.png"
SIZE = 1100, 1300
"""Width and height in pixels: the summary and the list of sections."""
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--no-first-run",
)


def sections(page: str) -> list[str]:
    """Titles of the sections of a page."""
    contents = page.partition("<nav")[2].partition("</nav>")[0]
    return [re.sub(r"<.*?>", "", title) for title in re.findall(r"<a [^>]*>(.*?)</a>", contents, flags=re.DOTALL)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of the run")
    page = parser.parse_args().run.resolve() / "report.html"
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        parser.error("needs Chromium; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        window = ",".join(map(str, SIZE))
        window_options = [
            f"--user-data-dir={folder}/profile",
            f"--window-size={window}",
            "--virtual-time-budget=8000",
            f"--screenshot={shot}",
        ]
        subprocess.run([browser, *OPTIONS, *window_options, page.as_uri()], check=True, capture_output=True, timeout=120)
        text = PngInfo()
        text.add_text("sections", "\n".join(sections(page.read_text(encoding="utf-8"))))
        Image.open(shot).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(PICTURE, pnginfo=text, optimize=True)
    print(PICTURE)


if __name__ == "__main__":
    main()
