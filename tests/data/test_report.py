"""What the report on a training set says."""

import json

import pytest
from pictures import concept, picture

from modules.data import scan
from modules.data.plan import Framing, variants
from modules.data.report import report

FRAMING = Framing("64", 8, True)


def words(captions):
    return [len(caption.split()) for caption in captions]


def test_numbers_of_a_small_set(folder):
    picture(20, 32, 32).save(folder / "small.png")
    picture(21, 128, 64).save(folder / "wide.png")
    picture(22, mode="L").save(folder / "0-masklabel.png")
    (folder / "wide.txt").write_text("one two three four five six")
    found = scan([concept(folder, name="set", balancing=2.0), concept(folder, enabled=False)])
    told = report(found, FRAMING, words, limit=4)
    (row,) = told.concepts
    assert (row.name, row.images, row.looks, row.captioned, row.masks) == ("set", 8, 16, 7, 1)
    assert row.size == sum(p.stat().st_size for p in folder.glob("*.png")) - (
        (folder / "0-masklabel.png").stat().st_size
    )
    assert told.sizes[0] == (64, 64, 6)
    buckets = {bucket.bucket.size: bucket for bucket in told.buckets}
    assert buckets[64, 64].images == 7
    assert buckets[64, 64].upscaled == 1
    assert buckets[64, 64].kept == 1.0
    (wide,) = [bucket for size, bucket in buckets.items() if size.width > size.height]
    scale = max(wide.bucket.height / 64, wide.bucket.width / 128)
    area = wide.bucket.height * wide.bucket.width / (64 * scale * 128 * scale)
    assert wide.kept == pytest.approx(area)
    assert told.tokens.longest == 6
    assert told.tokens.over == ((str(folder / "wide.png"), 6),)
    assert "missing caption" in {problem.kind for problem in told.problems}
    json.dumps(told.to_dict())
    text = str(told)
    assert "set (STANDARD): 8 images, 16 an epoch" in text
    assert "1 longer than the 4 that are read: " in text
    assert "wide.png (6)" in text
    assert "small.png" in text


def test_pictures_that_look_the_same_are_found(folder):
    picture(3, 200, 200).save(folder / "larger.jpg", quality=70)
    picture(3).point(lambda level: min(255, level + 12)).save(folder / "brighter.webp")
    picture(3).crop((3, 3, 61, 61)).save(folder / "cropped.png")
    picture(50).transpose(0).save(folder / "unlike.png")
    told = report(scan([concept(folder)]), FRAMING)
    (group,) = told.duplicates
    assert {path.rsplit("/", 1)[1] for path in group} == {
        "3.png",
        "larger.jpg",
        "brighter.webp",
        "cropped.png",
    }
    assert report(scan([concept(folder)]), FRAMING, duplicates=False).duplicates == ()


def test_pictures_that_the_camera_was_turned_for_are_counted(folder):
    for number, note in enumerate((1, 3, 6)):
        image = picture(30 + number)
        exif = image.getexif()
        exif[0x0112] = note
        image.save(folder / f"camera {note}.jpg", exif=exif)
    told = report(scan([concept(folder)]), FRAMING, duplicates=False)
    assert [path.rsplit("/", 1)[1] for path in told.turned] == ["camera 3.jpg", "camera 6.jpg"]
    assert "trained upright: 2 images" in str(told)
    assert {problem.kind for problem in told.problems} == {"missing caption"}  # it is no trouble


def test_captions_are_counted_each_and_may_have_no_limit(folder):
    (folder / "0.txt").write_text("one two three\na-caption-that-is-longest-by-letters")
    told = report(scan([concept(folder)]), FRAMING, words, limit=None, duplicates=False)
    assert (told.tokens.longest, told.tokens.over) == (3, ())


def test_pictures_that_break_behind_their_beginning_are_named_where_all_are_decoded(folder):
    path = folder / "torn.jpg"
    picture(60, 300, 300).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    assert "unreadable" not in str(report(scan([concept(folder)]), FRAMING, duplicates=False))
    (one,) = [p for p in report(scan([concept(folder)]), FRAMING).problems if p.skipped]
    assert (one.kind, one.paths) == ("unreadable image", (str(path),))


def test_blank_pictures_are_not_called_alike(tmp_path):
    for index, colour in enumerate((0, 128, 255)):
        picture(0).point(lambda _, c=colour: c).save(tmp_path / f"{index}.png")
    assert report(scan([concept(tmp_path)]), FRAMING).duplicates == ()


def test_nothing_at_all_is_reported_too(tmp_path):
    told = report(scan([concept(tmp_path)]), FRAMING, words)
    assert told.concepts[0].images == 0
    assert told.tokens is None
    assert "holds no image" in str(told)


def test_variants_show_what_training_would_see(folder):
    (folder / "0.txt").write_text("a, b, c, d, e")
    made = concept(
        folder,
        **{
            "image.enable_random_rotate": True,
            "image.random_rotate_max_angle": 30,
            "text.enable_tag_shuffling": True,
        },
    )
    (item, *_) = scan([made]).items
    shown = variants(item, made, FRAMING, 6)
    assert [image.size for image, _ in shown] == [(64, 64)] * 6
    assert len({image.tobytes() for image, _ in shown}) == 6
    assert len({caption for _, caption in shown}) > 3
    again = variants(item, made, FRAMING, 3)
    assert [i.tobytes() for i, _ in again] == [i.tobytes() for i, _ in shown[:3]]
