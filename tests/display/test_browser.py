"""The page in a real browser, opened from a disk: it draws, its cameras move in step, its switches do what they say.

Needs Chromium. Where there is none the file is skipped, or fails if LARPANDA_REQUIRE contains "browser".
"""

import io
import os
import shutil
import time
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest

from larpanda.display.figures import MOTIF_COLOR
from larpanda.display.scene import page as make_page
from larpanda.event import Event, EventKey, Motif, Status

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE = {"width": 1000, "height": 560}
VOXELS = 2000
TIMEOUT_MS = 90_000  # for a machine that has much else to do
EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None and "browser" not in os.environ.get("LARPANDA_REQUIRE", ""):
    pytest.skip("no Chromium found: the event display is not tested in a browser", allow_module_level=True)


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, "no Chromium found, and LARPANDA_REQUIRE asks for a browser; install one (apt install chromium)"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=TIMEOUT_MS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def events(make_event):
    return [make_event(VOXELS, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def address(tmp_path_factory, events, make_reconstruction, make_refused):
    """A page of six events: two with all there is, then without truth, without reconstruction, broken, empty."""
    first, second, third = events
    position = third.position.clone()
    position[:5] = float("nan")
    broken = replace(third, position=position, key=EventKey(f"{EVIL}.h5", 4))
    pairs = [
        (first, make_reconstruction(first)),
        (second, make_reconstruction(second)),
        (Event.from_arrays(third.position.numpy(), third.energy.numpy()), make_reconstruction(third)),
        (third, None),
        (broken, make_refused(VOXELS, Status.BAD_INPUT, f"5 positions are NaN {EVIL}")),
        (Event.from_arrays([], []), make_refused(0, Status.EMPTY, "")),
    ]
    path = tmp_path_factory.mktemp("display") / "event display.html"
    path.write_text(make_page(pairs, "Six events", f"macro F1\t0.9\n{EVIL}"), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def window(browser, address):
    """The page, opened once, and the list of what it complained about or asked of a network."""
    complaints = []

    def allow(url):
        return url.startswith(("file:", "data:", "blob:", "about:"))

    with browser.new_context(viewport=SIZE, color_scheme="dark") as context:
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: None if allow(request.url) else complaints.append(request.url))
        page.goto(address)
        wait_for(page, "Boolean(window.larpanda?.ready)")
        yield page, complaints


@pytest.fixture
def page(window):
    """The page at its first event, as it was opened; afterwards nothing may have gone wrong in it."""
    page, complaints = window
    page.evaluate("larpanda.setEvent(0)")
    for box in page.locator("#motifs input:not(:checked)").all():
        box.check()
    page.keyboard.press("1")
    page.keyboard.press("r")
    page.mouse.move(5, 5)
    yield page
    assert complaints == []


def wait_for(page, expression, argument=None):
    """Until it is true; Playwright's own waiting evaluates text, which the page's policy forbids."""
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while not page.evaluate(expression, argument):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)


def screenshot(page, panel=0):
    """[H, W, 3] bytes of one panel."""
    png = page.locator(".panel").nth(panel).screenshot()
    return (matplotlib.image.imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)


def pixels(image, motif):
    """How many pixels have nearly the colour of a motif."""
    color = MOTIF_COLOR[motif]
    wanted = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)])
    return int((np.abs(image - wanted).max(-1) < 12).sum())


def drag(page, panel, button="left"):
    box = page.locator(".panel").nth(panel).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down(button=button)
    page.mouse.move(x + 90, y - 40, steps=4)
    page.mouse.up(button=button)


def test_both_sides_are_drawn(page):
    assert page.evaluate("larpanda.drawn()") == [VOXELS, VOXELS]
    for panel in (0, 1):
        image = screenshot(page, panel)
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 200
        assert all(pixels(image, motif) > 20 for motif in Motif)


@pytest.mark.parametrize("panel", [0, 1])
def test_cameras_stay_in_step(page, panel):
    seen = [page.evaluate("larpanda.cameras()")]
    box = page.locator(".panel").nth(panel).bounding_box()
    for move in (
        lambda: drag(page, panel),
        lambda: drag(page, panel, "right"),
        lambda: (page.mouse.move(box["x"] + 200, box["y"] + 300), page.mouse.wheel(0, -400)),
        lambda: page.get_by_role("button", name="Top").click(),  # orthographic from here on
        lambda: drag(page, panel),
        lambda: (page.mouse.move(box["x"] + 200, box["y"] + 300), page.mouse.wheel(0, -400)),
        lambda: page.keyboard.press("f"),
        lambda: page.keyboard.press("r"),
    ):
        move()
        wait_for(page, "before => JSON.stringify(larpanda.cameras()) !== JSON.stringify(before)", seen[-1])
        seen.append(page.evaluate("larpanda.cameras()"))
        left, right = seen[-1]
        assert left == right
    assert np.allclose(seen[-1], seen[0])  # "r" undoes it all


def test_a_motif_can_be_switched_off_and_on(page, events):
    tracks = int((events[0].motif == Motif.TRACK).sum())
    before = [screenshot(page, panel) for panel in (0, 1)]
    box = page.get_by_label("track")
    box.uncheck()
    left, right = page.evaluate("larpanda.drawn()")
    assert left == VOXELS - tracks
    assert right < VOXELS
    for panel in (0, 1):
        after = screenshot(page, panel)
        assert pixels(after, Motif.TRACK) < 0.02 * pixels(before[panel], Motif.TRACK)
        assert pixels(after, Motif.SHOWER) > 0.9 * pixels(before[panel], Motif.SHOWER)
    page.keyboard.press("ArrowRight")  # the choice holds for the next event
    assert page.evaluate("larpanda.drawn()")[0] == VOXELS - int((events[1].motif == Motif.TRACK).sum())
    page.get_by_label("track").check()
    assert page.evaluate("larpanda.drawn()") == [VOXELS, VOXELS]


def test_colours_can_be_chosen(page):
    images = [screenshot(page)]
    for name in ("Energy", "Particle", "Interaction", "Difference"):
        page.get_by_role("button", name=name).click()
        images.append(screenshot(page))
        assert page.get_by_role("button", name=name).get_attribute("aria-pressed") == "true"
        assert all((images[-1] != earlier).any() for earlier in images[:-1])
    agreeing = pixels(images[-1], Motif.TRACK) / pixels(images[0], Motif.TRACK)
    assert 0.01 < agreeing < 0.4  # a tenth of the labels are wrong


def test_the_pointer_tells_what_is_there(page, events):
    page.get_by_role("button", name="Side").click()
    row = int(np.argmax(events[0].energy.numpy()))
    x, y = page.evaluate("row => larpanda.project(1, row)", row)
    page.mouse.move(x, y)
    text = page.locator("#tooltip").inner_text()
    seen = int(text.split("row")[1].split()[0])  # another one may be in front of it
    place = events[0].position[seen].numpy() * 0.3 + 0.15
    assert ", ".join(f"{cm:.2f}" for cm in place) + " cm" in text
    assert f"{events[0].energy[seen].item():#.3g} MeV" in text
    assert "truth" in text
    assert "prediction" in text
    page.mouse.move(5, 5)
    assert page.locator("#tooltip").is_hidden()


def test_zooming_homes_in_on_the_point_under_the_pointer(page):
    page.mouse.move(*page.evaluate("larpanda.project(0, 0)"))
    row = int(page.locator("#tooltip").inner_text().split("row")[1].split()[0])
    before = np.array(
        [page.evaluate("([panel, row]) => larpanda.project(panel, row)", [panel, row]) for panel in (0, 1)]
    )
    for _ in range(8):
        page.mouse.wheel(0, -300)
    distance = "Math.hypot(...[0, 1, 2].map((k) => larpanda.cameras()[0][k] - larpanda.cameras()[0][8 + k]))"
    wait_for(page, f"{distance} < 600")  # from more than 1000 cm
    after = np.array(
        [page.evaluate("([panel, row]) => larpanda.project(panel, row)", [panel, row]) for panel in (0, 1)]
    )
    assert np.abs(after - before).max() < 12


def test_events_are_reached_by_key_button_list_and_link(page, address):
    page.keyboard.press("ArrowRight")
    assert page.evaluate("[larpanda.event(), location.hash]") == [1, "#event=1"]
    page.get_by_role("button", name="previous event").click()
    assert page.evaluate("[larpanda.event(), location.hash]") == [0, "#event=0"]
    page.keyboard.press("ArrowLeft")  # there is none before the first
    assert page.evaluate("larpanda.event()") == 0
    page.get_by_label("event", exact=True).select_option(index=3)
    assert page.evaluate("larpanda.event()") == 3
    page.evaluate("location.hash = '#event=999'")
    wait_for(page, "larpanda.event() === 5 && location.hash === '#event=5'")
    page.goto("about:blank")
    page.goto(f"{address}#event=1")
    wait_for(page, "Boolean(window.larpanda?.ready)")
    assert page.evaluate("larpanda.event()") == 1


def test_every_kind_of_event_has_its_page(page):
    for number, drawn in enumerate(
        [[VOXELS, VOXELS], [VOXELS, VOXELS], [0, VOXELS], [VOXELS, 0], [VOXELS - 5] * 2, [0, 0]]
    ):
        page.evaluate("number => larpanda.setEvent(number)", number)
        assert page.evaluate("larpanda.drawn()") == drawn
        page.keyboard.press("3")
        assert page.evaluate("larpanda.drawn()") == drawn
    assert "empty" in page.locator("#facts").inner_text()


def test_what_an_event_says_stays_text(page):
    page.evaluate("larpanda.setEvent(4)")
    assert "<img src=x" in page.locator("#notice").inner_text()
    assert "5 of 2,000 voxels" in page.locator("#notice").inner_text()
    assert EVIL in page.locator("#summary").inner_text()
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.images.length") == 0


def test_the_page_follows_light_and_dark(page):
    assert np.median(screenshot(page)) < 25
    page.emulate_media(color_scheme="light")
    bright = screenshot(page)
    page.emulate_media(color_scheme="dark")
    assert np.median(bright) >= 250
    assert pixels(bright, Motif.TRACK) > 20
    assert np.median(screenshot(page)) < 25


def test_the_view_can_be_saved(page, tmp_path):
    with page.expect_download() as download:
        page.get_by_role("button", name="Save PNG").click()
    download.value.save_as(tmp_path / "view.png")
    assert download.value.suggested_filename == "event_0.png"
    image = (matplotlib.image.imread(tmp_path / "view.png")[..., :3] * 255).round().astype(int)
    assert all(pixels(image, motif) > 100 for motif in Motif)


def test_without_webgl_the_page_says_so(browser, address):
    with browser.new_context() as context:
        context.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("#notice:not([hidden])")
        assert "no WebGL" in page.locator("#notice").inner_text()
