"""What a person is told about the files of a concept."""

import os
import struct
import zlib

import pytest
from pictures import concept, picture

from modules.data import scan


def told(found):
    """Problem texts by kind."""
    return {problem.kind: str(problem) for problem in found.problems}


def names(found):
    return [item.name for item in found.items]


def test_a_clean_folder_has_nothing_to_tell(folder):
    found = scan([concept(folder)])
    assert found.problems == ()
    assert names(found) == [f"{i}.png" for i in range(6)]
    assert [item.captions for item in found.items] == [(f"picture {i}",) for i in range(6)]
    assert {(item.width, item.height) for item in found.items} == {(64, 64)}


def test_a_missing_folder_and_one_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "below").mkdir()
    picture(0).save(tmp_path / "empty" / "below" / "a.png")
    found = scan([concept(tmp_path / "gone", name="cats"), concept(tmp_path / "empty")])
    assert found.items == ()
    assert "'cats'" in told(found)["missing folder"]
    assert str(tmp_path / "gone") in told(found)["missing folder"]
    assert "Folders below it are not read." in told(found)["empty folder"]
    deep = scan([concept(tmp_path / "empty", include_subdirectories=True)])
    assert names(deep) == ["below/a.png"]


def test_a_disabled_concept_is_not_even_looked_at(tmp_path):
    assert scan([concept(tmp_path / "gone", enabled=False)]).problems == ()


def test_broken_files_are_named_and_the_others_stay(folder):
    (folder / "0.png").write_bytes(b"this is no picture")
    (folder / "1.png").write_bytes((folder / "2.png").read_bytes()[:20])
    (folder / "3.txt").write_bytes("Katze mit Hüten".encode("latin-1"))
    found = scan([concept(folder)])
    assert names(found) == ["2.png", "4.png", "5.png"]
    text = told(found)["unreadable caption"]
    assert "3.txt" in text
    assert "Save it as UTF-8" in text
    broken = [p for p in found.problems if p.kind == "unreadable image"]
    assert {path for p in broken for path in p.paths} == {
        str(folder / "0.png"),
        str(folder / "1.png"),
    }
    assert all(problem.skipped for problem in found.problems)


def test_captions_that_are_not_there_are_said_but_the_image_trains(folder):
    (folder / "0.txt").unlink()
    (folder / "1.txt").write_text(" \n\n")
    (folder / "orphan.txt").write_text("nobody")
    found = scan([concept(folder)])
    assert [item.captions for item in found.items[:2]] == [("",), ("",)]
    assert "0.png" in told(found)["missing caption"]
    assert "1.txt" in told(found)["empty caption"]
    assert "orphan.txt" in told(found)["orphan caption"]
    assert not any(problem.skipped for problem in found.problems)


def test_every_line_that_is_not_empty_is_an_alternative(folder):
    (folder / "0.txt").write_text("\ufeffa fox\r\n\r\n  an animal \n", encoding="utf-8")
    assert scan([concept(folder)]).items[0].captions == ("a fox", "an animal")


def test_a_caption_of_a_megabyte(folder):
    (folder / "0.txt").write_text("x" * 5000)
    (folder / "1.txt").write_text("x" * ((1 << 20) + 1))
    found = scan([concept(folder)])
    assert "0.txt" in told(found)["long caption"]
    assert "1.txt" in told(found)["unreadable caption"]
    assert names(found) == ["0.png", "2.png", "3.png", "4.png", "5.png"]


def test_captions_from_the_file_name_and_from_one_file(folder, tmp_path):
    by_name = scan([concept(folder, **{"text.prompt_source": "filename"})])
    assert [item.captions for item in by_name.items][:2] == [("0",), ("1",)]
    lines = tmp_path / "prompts.txt"
    lines.write_text("one\n\ntwo\n")
    settings = {"text.prompt_source": "concept", "text.prompt_path": str(lines)}
    shared = scan([concept(folder, **settings)])
    assert {item.captions for item in shared.items} == {("one", "two")}
    assert shared.problems == ()
    lines.unlink()
    gone = scan([concept(folder, **settings)])
    assert "Choose a text file" in told(gone)["unreadable caption"]
    assert gone.items == ()


def test_masks_and_conditioning_images_belong_to_their_image(folder):
    picture(9, mode="L").save(folder / "0-masklabel.png")
    picture(9).save(folder / "1-condlabel.png")
    picture(9).save(folder / "77-masklabel.png")
    found = scan([concept(folder)])
    assert names(found) == [f"{i}.png" for i in range(6)]
    assert found.items[0].mask.name == "0-masklabel.png"
    assert found.items[1].conditioning.name == "1-condlabel.png"
    assert found.items[1].mask is None
    assert "77-masklabel.png" in told(found)["orphan mask"]


def test_unusual_pictures_are_said(folder):
    picture(0, mode="RGBA").save(folder / "0.png")
    picture(1).convert("CMYK").save(folder / "cmyk.jpg")
    frames = [picture(2), picture(3)]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:])
    (folder / "film.mp4").write_bytes(b"")
    found = scan([concept(folder)])
    assert "white stands behind" in told(found)["transparent"]
    assert "CMYK" in told(found)["converted colours"]
    assert "first frame" in told(found)["animated"]
    assert "film.mp4" in told(found)["unsupported"]
    assert len(found.items) == 8


def test_a_picture_that_the_camera_turned_has_its_upright_size(folder):
    exif = picture(0).getexif()
    exif[0x0112] = 8
    picture(0, 80, 48).save(folder / "0.jpg", exif=exif)
    item = scan([concept(folder)]).items[0]
    assert (item.name, item.width, item.height) == ("0.jpg", 48, 80)


def png(width, height):
    """A PNG whose header promises this size."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_a_picture_made_to_fill_the_memory_is_refused(folder):
    (folder / "0.png").write_bytes(png(30000, 30000))
    found = scan([concept(folder)])
    assert "Scale it down" in told(found)["too large"]
    assert "0.png" not in names(found)


NAMES = ['it\'s "quoted"', "line\nbreak", "😀 emoji", "<script>alert(1)<", "ü" * 120, "dots.. "]


@pytest.mark.parametrize("name", NAMES)
def test_strange_names_are_just_names(tmp_path, name):
    picture(0).save(tmp_path / f"{name}.png")
    (tmp_path / f"{name}.txt").write_text("fine")
    (tmp_path / f"{name}2.png").write_bytes(b"broken")
    found = scan([concept(tmp_path)])
    assert names(found) == [f"{name}.png"]
    assert found.items[0].captions == ("fine",)
    (problem,) = found.problems
    assert str(problem).isprintable()
    assert problem.paths == (str(tmp_path / f"{name}2.png"),)


def test_a_name_that_is_no_text(tmp_path):
    raw = os.fsencode(tmp_path) + b"/bad\xff.png"
    picture(0).save(tmp_path / "good.png")
    os.rename(os.fsencode(tmp_path / "good.png"), raw)  # noqa: PTH104
    found = scan([concept(tmp_path)])
    assert len(found.items) == 1
    assert str(found.problems[0]).isprintable()
    str(found.problems[0]).encode("utf-8")


def test_links_in_circles_and_to_nowhere(folder):
    (folder / "loop").symlink_to(folder)
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    for name in ("itself.png", "0a.png", "zz.png"):  # wherever it is listed, nothing else is lost
        (folder / name).symlink_to(folder / name)
    found = scan([concept(folder, include_subdirectories=True)])
    assert len(found.items) == 6
    lost = {p for one in found.problems if one.kind == "unreadable file" for p in one.paths}
    assert lost == {str(folder / n) for n in ("gone.png", "itself.png", "0a.png", "zz.png")}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes in folders")
def test_a_pipe_is_named_and_not_waited_for(folder):
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "0-masklabel.png")
    found = scan([concept(folder)])
    assert len(found.items) == 6
    assert found.items[0].mask is None
    assert "a device or a pipe" in str(told(found)["unreadable file"])


def test_hidden_folders_and_files_are_left_alone(folder):
    (folder / ".trash").mkdir()
    picture(0).save(folder / ".trash" / "a.png")
    picture(0).save(folder / ".hidden.png")
    assert len(scan([concept(folder, include_subdirectories=True)]).items) == 6


def test_many_files_with_one_trouble_make_one_message(tmp_path):
    for index in range(30):
        picture(index, 8, 8).save(tmp_path / f"{index:02}.png")
    (problem,) = scan([concept(tmp_path)]).problems
    assert len(problem.paths) == 30
    assert "00.png" in str(problem)
    assert "and 25 more" in str(problem)


def test_what_is_remembered_is_what_would_be_read(folder, tmp_path):
    old = 1_600_000_000
    for path in folder.iterdir():
        os.utime(path, (old, old))
    cache = tmp_path / "cache"
    picture(0, mode="RGBA").save(folder / "0.png")
    fresh = scan([concept(folder)])
    for _ in range(2):
        remembered = scan([concept(folder)], cache)
        assert [i.captions for i in remembered.items] == [i.captions for i in fresh.items]
        assert [(i.width, i.height) for i in remembered.items] == [(64, 64)] * 6
        assert remembered.problems == fresh.problems
    picture(5, 80, 40).save(folder / "5.png")
    changed = scan([concept(folder)], cache)
    assert (changed.items[5].width, changed.items[5].height) == (80, 40)
