"""Files that appear whole or not at all."""

import pytest

from larpanda.publish import publish_text, publishing


def test_a_file_appears_at_the_end_of_the_block(tmp_path):
    with publishing(tmp_path / "a.txt") as part:
        part.write_text("new")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


def half(path):
    path.write_text("half")
    raise RuntimeError


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path):
    publish_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), publishing(tmp_path / "a.txt") as part:
        half(part)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_text_makes_its_folder(tmp_path):
    publish_text(tmp_path / "new" / "folder" / "a.txt", "μ and π⁰")
    assert (tmp_path / "new" / "folder" / "a.txt").read_text(encoding="utf-8") == "μ and π⁰"
