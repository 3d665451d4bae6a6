"""What validate says: every problem counted, the first shown, nothing of a file's names taken for markup."""

import re
from html.parser import HTMLParser

import numpy as np

from larpanda.data.validate import ENERGY_EDGES_MEV, FileCheck, Found, Kind
from larpanda.findings import LINES, MEANING, page, text

HOSTILE = '<script>alert("1")</script>&\x1b[2J\udcff.h5'


def check(file="a.h5", n_events=4, found=(), error="", warning="", n_voxels=(3, 5, 70, 2000)):
    counts = np.zeros(len(ENERGY_EDGES_MEV) - 1, np.int64)
    counts[20:23] = 5, 100, 7
    n_bad = sum(one.n_events for one in found)
    energy = np.array(n_voxels) / 2
    return FileCheck(
        file, n_events, max((n_events or 0) - n_bad, 0), found, error, warning, np.array(n_voxels), energy, counts
    )


BAD = (
    Found(Kind.EMPTY, 1, ((3, "no voxel"),)),
    Found(Kind.BAD_INPUT, 2, ((0, "because <b>"), (2, "of this\nand that"))),
)
CHECKS = [
    check("good.h5"),
    check("folder/bad.h5", found=BAD, warning="odd units"),
    check(HOSTILE, None, error="not HDF5: <i>", n_voxels=()),
    check("hangs.h5", error="reader hung at event 3"),
]


class Page(HTMLParser):
    """The tags of a page, and all addresses in it."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.addresses = set(), []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href", "action")]


def test_text():
    lines = text(CHECKS).splitlines()
    assert lines[0].split() == ["file", "events", "good", "problems"]
    assert lines[1].split() == ["good.h5", "4", "4"]
    assert lines[2].endswith("4     1  empty 1, bad_input 2")
    assert lines[3] == '<script>alert("1")</script>&?[2J??.h5       -     -  cannot be read'.replace("??", "?")
    assert lines[4].endswith("4     4  not read to its end")
    assert lines[5] == "4 files, 3 with problems; 12 events, 9 good"
    assert lines[6] == "an event has 3 / 38 / 2,000 voxels and 2 / 19 / 1,000 MeV (least / median / most)"
    assert lines[7:] == [
        "folder/bad.h5: warning: odd units",
        "folder/bad.h5: event 0: bad_input: because <b>",
        "folder/bad.h5: event 2: bad_input: of this?and that",
        "folder/bad.h5: event 3: empty: no voxel",
        '<script>alert("1")</script>&?[2J?.h5: not HDF5: <i>',
        "hangs.h5: reader hung at event 3",
    ]


def test_many_problems_are_counted_if_not_shown():
    first = tuple((i, "no voxel") for i in range(5))
    lines = text([check(f"{i}.h5", 100, (Found(Kind.EMPTY, 90, first),)) for i in range(10)]).splitlines()
    shown = [line for line in lines if ": event " in line]
    assert len(shown) == LINES
    assert lines[-1] == f"and {900 - LINES} more"


def test_page():
    source = page(CHECKS)
    assert source == page(CHECKS)
    parsed = Page(source)
    assert not parsed.tags & {"script", "b", "i", "img", "link", "iframe"}
    assert [address for address in parsed.addresses if not address.startswith("#")] == []
    assert not re.search(r"url\((?!#)|@import", source)
    assert source.count("<svg") == 2
    for said in ("<td>bad_input</td><td>2</td>", MEANING[Kind.EMPTY], "because &lt;b&gt;", "odd units", "1,000 MeV"):
        assert said in source
    assert "12 of 12 events are in its range" in source
    assert "448 of 6,234 voxels are in its range" in source


def test_page_of_nothing():
    for checks in ([], [check(n_events=0, n_voxels=())], [check(n_events=1, n_voxels=(0,))]):
        assert "<svg" in page(checks)
        assert text(checks)


def test_every_problem_has_a_meaning():
    assert MEANING.keys() == set(Kind)
