"""Measure how soon the page appears in Chromium, with the demo loaded and nothing in the browser's cache.

python -m tests.ui.first_paint [--repeats 5]
"""

import argparse
import os
import shutil
import statistics
from typing import Any

from playwright.sync_api import sync_playwright

from aesthetic.service import Service
from aesthetic.ui.page import OPENING, launched

PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
CATS = """(() => {
  const cats = [...document.images].filter(image => image.src.includes('/opening/') && image.checkVisibility())
  return cats.length > 6 && cats.every(image => image.naturalWidth) && performance.now()
})()"""


def measured(browser: Any, address: str) -> tuple[float, float]:
    """Seconds from navigation to the first contentful paint, and to the strip of cats."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    tab.goto(address, wait_until="commit")
    cats, paint = (tab.wait_for_function(script).json_value() / 1000 for script in (CATS, PAINT))
    context.close()
    return paint, cats


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with launched(Service.load("demo"), lambda _: None, OPENING) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        times = [measured(browser, address) for _ in range(repeats)]
        browser.close()
    for name, seconds in zip(("first contentful paint", "strip of cats"), zip(*times, strict=True), strict=True):
        each = ", ".join(f"{value:.2f}" for value in seconds)
        print(f"{name}: {statistics.median(seconds):.2f} s (median of {each}); load {os.getloadavg()[0]:.1f}")
