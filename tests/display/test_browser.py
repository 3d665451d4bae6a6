"""The page in a real browser, opened from a disk: it draws, its cameras move in step, its switches do what they say.

Needs Chromium. Where there is none the file is skipped, or fails if LARPANDA_REQUIRE contains "browser".
"""

import io
import os
import re
import shutil
import time
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest

from larpanda.analysis.kinematics import Detector, measure_event
from larpanda.display.figures import INSTANCE_COLORS, MOTIF_COLOR
from larpanda.display.lists import Scores, Shown
from larpanda.display.scene import page as make_page
from larpanda.event import EnergyScale, Event, EventKey, Motif, Species, Status

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
SIZE = {"width": 1200, "height": 760}
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


def measured(event, found):
    """An event as it is shown with all there is."""
    interactions, particles = measure_event(event, found, Detector(), EnergyScale())
    of_particles = tuple(particles[one.id] for one in found.particles)
    return Shown(event, found, of_particles, tuple(interactions.get(one.id) for one in found.interactions))


@pytest.fixture(scope="module")
def first(events, make_reconstruction):
    """Of the first event: particles of their interactions, the last of none, and numbers."""
    found = make_reconstruction(events[0])
    particles = [replace(one, interaction=(100 - one.id) // 3, score=0.5 + one.id / 1000) for one in found.particles]
    particles[-1] = replace(particles[-1], interaction=-1)
    scores = Scores(0.8765, 0.5, float("nan")), Scores(1.0, 0.25, 0.125)
    shown = measured(events[0], replace(found, particles=tuple(particles)))
    return replace(shown, particle_scores=scores[0], interaction_scores=scores[1])


@pytest.fixture(scope="module")
def address(tmp_path_factory, events, first, make_reconstruction, make_refused):
    """A page of seven events: two with all there is, then without truth, without reconstruction, broken, empty, and
    with motifs only."""
    _, second, third = events
    evil = measured(second, make_reconstruction(second))
    evil = replace(evil, interactions=tuple(one and replace(one, topology=EVIL) for one in evil.interactions))
    position = third.position.clone()
    position[:5] = float("nan")
    broken = replace(third, position=position, key=EventKey(f"{EVIL}.h5", 4))
    shown = [
        first,
        evil,
        Shown(Event.from_arrays(third.position.numpy(), third.energy.numpy()), make_reconstruction(third)),
        Shown(third),
        Shown(broken, make_refused(VOXELS, Status.BAD_INPUT, f"5 positions are NaN {EVIL}")),
        Shown(Event.from_arrays([], []), make_refused(0, Status.EMPTY, "")),
        Shown(third, replace(make_reconstruction(third), particles=None, interactions=None)),
    ]
    path = tmp_path_factory.mktemp("display") / "event display.html"
    path.write_text(make_page(shown, "Seven events", f"macro F1\t0.9\n{EVIL}"), encoding="utf-8")
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
    page.keyboard.press("Escape")
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
        page.get_by_role("button", name=name, exact=True).click()
        images.append(screenshot(page))
        assert page.get_by_role("button", name=name, exact=True).get_attribute("aria-pressed") == "true"
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
    wait_for(page, "larpanda.event() === 6 && location.hash === '#event=6'")
    page.goto("about:blank")
    page.goto(f"{address}#event=1")
    wait_for(page, "Boolean(window.larpanda?.ready)")
    assert page.evaluate("larpanda.event()") == 1


def test_every_kind_of_event_has_its_page(page):
    for number, drawn in enumerate(
        [[VOXELS, VOXELS], [VOXELS, VOXELS], [0, VOXELS], [VOXELS, 0], [VOXELS - 5] * 2, [0, 0], [VOXELS] * 2]
    ):
        page.evaluate("number => larpanda.setEvent(number)", number)
        assert page.evaluate("larpanda.drawn()") == drawn
        page.keyboard.press("3")
        assert page.evaluate("larpanda.drawn()") == drawn
        assert page.locator("#lists").is_visible() == page.locator("#table").is_visible() == (number < 3)
        assert page.locator(".list").count() == [2, 2, 1, 0, 0, 0, 0][number]
        assert ("empty" in page.locator("#facts").inner_text()) == (number == 5)


def test_what_an_event_says_stays_text(page):
    page.evaluate("larpanda.setEvent(4)")
    assert "<img src=x" in page.locator("#notice").inner_text()
    assert "5 of 2,000 voxels" in page.locator("#notice").inner_text()
    assert EVIL in page.locator("#summary").inner_text()
    page.evaluate("larpanda.setEvent(1)")
    assert EVIL in page.locator(".list").nth(1).locator(".interaction").first.inner_text()
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


def cells(row):
    return row.locator("td").all_inner_texts()


def number(text):
    return float(text.replace("\u2212", "-").replace(",", ""))


def row_of(page, side, name):
    return page.locator(".list").nth(side).locator("tr", has=page.get_by_role("button", name=name, exact=True))


def test_the_lists_say_what_was_measured(page, first):
    heads = page.locator(".list").nth(1).locator("th").all_inner_texts()
    columns = ["score", "KE [MeV]", "length [cm]", "direction x, y, z", "contained", "voxels"]
    assert heads == [f"{len(first.particles)} found", *columns]
    assert page.locator(".list").nth(1).locator("tr.particle").count() == len(first.particles)
    for one, measure in zip(first.reconstruction.particles, first.particles, strict=True):
        values = cells(row_of(page, 1, f"muon {one.id}"))[1:]
        assert number(values[0]) == pytest.approx(one.score, abs=0.0051)
        assert number(values[1]) == pytest.approx(measure.energy_mev, abs=0.051)
        assert number(values[2]) == pytest.approx(measure.length_cm, abs=0.051)
        direction = [number(text) for text in re.findall(r"\S\d?\.\d\d", values[3])]
        assert direction == pytest.approx(list(measure.direction), abs=0.0051)
        assert values[4:] == ["yes" if measure.contained else "no", str(one.n_voxels)]
    groups = page.locator(".list").nth(1).locator("tr.interaction").all_inner_texts()
    assert len(groups) == len(first.interactions) + 1
    assert groups[-1].strip() == "in no interaction"
    for one, measure in zip(first.reconstruction.interactions, first.interactions, strict=True):
        text = row_of(page, 1, f"interaction {one.id}").inner_text()
        assert measure.topology in text
        assert f"vertex {', '.join(f'{cm:.1f}' for cm in measure.vertex_cm)} cm" in text
        assert f"{measure.energy_mev:.1f} MeV" in text


def test_the_lists_say_what_is_true(page, events):
    listed = page.locator(".list").nth(0)
    assert listed.locator("th").all_inner_texts() == ["8 true", "voxels"]  # of labels nothing else is known
    for p in range(8):
        name = f"{Species(p % 5).name.lower()} {p}"
        count = int((events[0].particle == p).sum())
        assert [text.strip() for text in cells(row_of(page, 0, name))] == [name, f"{count:,}"]


def test_how_well_an_event_was_found_is_said(page):
    rows = [cells(row) for row in page.locator("#scores tr").all()[1:]]
    assert rows == [["particles", "0.876", "0.500", "–"], ["interactions", "1.000", "0.250", "0.125"]]
    page.evaluate("larpanda.setEvent(2)")
    assert page.locator("#scores tr").count() == 0


def test_swatches_have_the_colours_of_the_picture(page):
    colors = page.locator(".list .particle .swatch")
    shown = "all => all.map((one) => getComputedStyle(one).backgroundColor)"
    assert set(colors.evaluate_all(shown)) == {"rgba(0, 0, 0, 0)"}  # the picture shows motifs
    page.keyboard.press("3")
    wanted = [f"rgb({', '.join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))})" for color in INSTANCE_COLORS]
    for p in range(8):
        for side, name in ((0, f"{Species(p % 5).name.lower()} {p}"), (1, f"muon {100 - p}")):
            assert row_of(page, side, name).locator(".swatch").evaluate_all(shown) == [wanted[p]]


@pytest.fixture
def voxels_of(events, first):
    """How many voxels of a particle, of the truth and of what was found, have a place in the picture."""
    found = first.reconstruction.particle
    return lambda p: [int((events[0].particle == p).sum()), int((found == 100 - p).sum())]


def test_pointing_at_a_row_puts_its_particle_into_the_light(page, voxels_of):
    everything = page.evaluate("larpanda.lit()")
    before = screenshot(page)
    for side, name in ((1, "muon 97"), (0, "pion 3")):
        row_of(page, side, name).hover()
        assert page.evaluate("larpanda.lit()") == voxels_of(3)
        assert page.evaluate("larpanda.drawn()") == [VOXELS, VOXELS]  # the others are behind
        assert page.locator("tr.chosen").count() == 2  # true and found
    after = screenshot(page)
    others = [motif for motif in Motif if motif != Motif.DELTA]  # particle 3 is one
    assert all(pixels(after, motif) < 0.1 * pixels(before, motif) for motif in others)
    page.mouse.move(5, 5)
    assert page.evaluate("larpanda.lit()") == everything
    assert page.locator("tr.chosen").count() == 0


def test_a_click_on_a_row_holds_it_until_another_or_escape(page, voxels_of):
    everything = page.evaluate("larpanda.lit()")
    row_of(page, 1, "muon 98").click()
    page.mouse.move(5, 5)
    assert page.evaluate("larpanda.lit()") == voxels_of(2)
    assert row_of(page, 0, "muon 2").get_by_role("button").get_attribute("aria-pressed") == "true"
    row_of(page, 1, "muon 97").hover()  # for as long as it lasts
    assert page.evaluate("larpanda.lit()") == voxels_of(3)
    page.mouse.move(5, 5)
    assert page.evaluate("larpanda.lit()") == voxels_of(2)
    row_of(page, 0, "muon 2").click()
    page.mouse.move(5, 5)
    assert page.evaluate("larpanda.lit()") == everything
    row_of(page, 1, "muon 98").click()
    page.keyboard.press("Escape")
    assert page.evaluate("larpanda.lit()") == everything
    row_of(page, 1, "muon 98").click()
    page.evaluate("larpanda.setEvent(1)")
    assert page.locator("tr.pinned").count() == 0


def test_an_interaction_can_be_held_too(page, events):
    row_of(page, 1, "interaction 1").click()
    page.mouse.move(5, 5)
    assert page.evaluate("larpanda.lit()")[0] == int((events[0].interaction == 1).sum())


def test_rows_are_reached_by_keyboard(page, voxels_of):
    page.locator("#table").focus()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "muon 97":
            break
    assert page.evaluate("larpanda.lit()") == voxels_of(3)
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert row_of(page, 1, "muon 97").get_by_role("button").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert page.locator("tr.pinned").count() == 0


@pytest.mark.parametrize("panel", [0, 1])
def test_a_click_on_a_voxel_selects_its_row(page, events, first, panel):
    page.get_by_role("button", name="Side").click()
    row = int(((first.reconstruction.particle >= 0) & (events[0].particle == 6)).nonzero()[0])
    page.mouse.move(*page.evaluate("([panel, row]) => larpanda.project(panel, row)", [panel, row]))
    seen = int(page.locator("#tooltip").inner_text().split("row")[1].split()[0])  # another may be in front of it
    page.mouse.down()
    page.mouse.up()
    p = int(events[0].particle[seen])
    names = {f"{Species(p % 5).name.lower()} {p}", f"muon {100 - p}"}
    assert set(page.locator("tr.pinned button").all_inner_texts()) == names
    page.keyboard.press("Escape")
    assert page.locator("tr.pinned").count() == 0


def test_a_drag_that_ends_on_a_voxel_selects_nothing(page, events):
    page.get_by_role("button", name="Side").click()
    for row in (events[0].particle >= 0).nonzero()[:, 0].tolist():
        x, y = page.evaluate("row => larpanda.project(0, row)", row)
        page.mouse.move(x, y)
        seen = int(page.locator("#tooltip").inner_text().split("row")[1].split()[0])
        if events[0].particle[seen] >= 0:
            break
    page.keyboard.down("Shift")  # the detector moves with the pointer
    page.mouse.down()
    page.mouse.move(x + 60, y + 20, steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")
    assert page.evaluate("row => larpanda.project(0, row)", row) == pytest.approx([x + 60, y + 20], abs=1)
    assert page.locator("tr.pinned").count() == 0
    page.mouse.down()
    page.mouse.up()
    assert page.locator("tr.pinned").count() == 2


def test_the_table_makes_way_for_the_picture(page):
    height = page.locator("#stage").bounding_box()["height"]
    page.get_by_role("button", name="Table").click()
    assert page.locator("#lists").is_hidden()
    assert page.locator("#stage").bounding_box()["height"] > height + 150
    page.keyboard.press("t")
    assert page.locator("#lists").is_visible()
