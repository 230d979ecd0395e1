"""The page in a real browser: phone and desk, light and dark, without a complaint, a request or a sideways scroll."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from headless_chromium import Chromium, find_chromium, running_chromium
from page_text import with_every_text
from PIL import Image, ImageStat
from sample_report import sample_report

from quantkit.verify.report.html import render_html

pytestmark = pytest.mark.full

LONG_WORD = "x" * 300
# A page that this reached would have changed its title.
HIT = "document.title='hit'"
ATTACK = f'</script></pre><img src=x onerror="{HIT}"><script>{HIT}</script>'
WIDTH = "document.documentElement.scrollWidth"
GROUND = "getComputedStyle(document.body).backgroundColor"
SPILT = """[...document.querySelectorAll('main *, header *, footer *')].filter(element =>
  element.getBoundingClientRect().right > document.documentElement.clientWidth + 1
  && !element.closest('.scroll, svg')).map(element => element.tagName + '.' + element.className)"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on PATH: scripts/setup_chromium installs one")
    with running_chromium(program, tmp_path_factory.mktemp("browser") / "profile") as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_html(sample_report()), encoding="utf-8")
    return path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_page(browser: Chromium, page: Path, width: int, dark: bool) -> None:
    view = browser.visit(page, width=width, dark=dark, ask=(WIDTH, SPILT, GROUND))
    assert view.complaints == []
    assert [url for url in view.requests if not url.startswith("data:image/png")] == [page.as_uri()]
    assert view.values[0] <= width
    assert view.values[1] == []
    shot = Image.open(io.BytesIO(view.screenshot)).convert("L")
    red, green, blue = (int(part) for part in view.values[2].removeprefix("rgb(").rstrip(")").split(","))
    assert (red + green + blue < 200) == dark
    assert (ImageStat.Stat(shot).mean[0] < 100) == dark


@pytest.mark.parametrize("text", [ATTACK, LONG_WORD], ids=["attack", "long word"])
def test_texts_neither_act_nor_widen_the_page(browser: Chromium, tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_html(with_every_text(sample_report(), text)), encoding="utf-8")
    view = browser.visit(path, width=360, ask=(WIDTH, "document.title", "document.scripts.length"))
    assert view.complaints == []
    assert [url for url in view.requests if not url.startswith("data:image/png")] == [path.as_uri()]
    assert view.values[0] <= 360
    assert view.values[1] != "hit"
    assert view.values[2] == 0


def test_this_test_notices_what_a_bad_page_does(browser: Chromium, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        "<title>x</title><img src='missing.png'><script>console.log('said')</script><p style='width:999px'>"
    )
    view = browser.visit(path, width=360, ask=(WIDTH,))
    assert any("said" in complaint for complaint in view.complaints)
    assert (tmp_path / "missing.png").as_uri() in view.requests
    assert view.values[0] > 360
