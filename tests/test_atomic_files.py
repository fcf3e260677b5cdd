"""Atomic writes, and output folders that may be replaced."""

import pytest

from speechclip_plus.atomic_files import check_new_folder, finished_folder, write_text


def make(folder, **files):
    with finished_folder(folder) as work:
        for name, content in files.items():
            (work / name).write_text(content)


def test_a_finished_folder_replaces_an_earlier_one(tmp_path):
    folder = tmp_path / "out"
    make(folder, results="old", extra="gone")
    check_new_folder(folder, force=True)
    make(folder, results="new")
    assert (folder / "results").read_text() == "new" and not (folder / "extra").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ValueError, match="exists; name another folder"):
        check_new_folder(folder, force=False)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interruption_leaves_the_earlier_folder_as_it_was(tmp_path, error):
    make(tmp_path / "out", results="old")
    with pytest.raises(error), finished_folder(tmp_path / "out") as work:
        (work / "results").write_text("half")
        raise error
    assert (tmp_path / "out" / "results").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("place", ["holiday.jpg", "photos/holiday.jpg", ".hidden"])
def test_a_file_of_somebody_else_is_never_deleted(tmp_path, place):
    folder = tmp_path / "out"
    make(folder, results="old")
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_text("mine")
    with pytest.raises(ValueError, match=rf"{place} was not written by"):
        check_new_folder(folder, force=True)


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path):
    (tmp_path / "results.json").write_text("mine")
    with pytest.raises(ValueError, match="was not written by an earlier run"):
        check_new_folder(tmp_path, force=True)


def test_what_is_read_is_never_replaced_nor_a_folder_above_it(tmp_path):
    make(tmp_path / "data", metadata="rows")
    for folder in (tmp_path, tmp_path / "data"):
        with pytest.raises(ValueError, match="is or holds .*data, which is in use"):
            check_new_folder(folder, force=True, inputs=(None, "ann/model", tmp_path / "data"))


def test_links_files_and_the_current_folder_are_refused(tmp_path, monkeypatch):
    make(tmp_path / "out", results="old")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(ValueError, match="link"):
        check_new_folder(tmp_path / "link", force=True)
    with pytest.raises(ValueError, match="is a file"):
        check_new_folder(tmp_path / "out" / "results", force=True)
    with pytest.raises(ValueError, match="cannot be made: .* is a file"):
        check_new_folder(tmp_path / "out" / "results" / "deeper", force=True)
    monkeypatch.chdir(tmp_path / "out")
    with pytest.raises(ValueError, match="in use"):
        check_new_folder(tmp_path / "out", force=True)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "report.html"
    file.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "\ud800")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
