"""One set in every form that it may come in: what is trained is the same."""

import tarfile
import zipfile

import datasets
import pytest
import torch
from pictures import concept, picture, prepare

from modules.data import Batches, scan
from modules.data.sources import read

datasets.disable_progress_bars()


def as_zip(folder, target):
    with zipfile.ZipFile(target / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"pictures/{path.name}")
        archive.writestr("__MACOSX/pictures/._0.png", b"resource fork")
    return target / "set.zip"


def as_webdataset(folder, target):
    for shard in range(2):
        with tarfile.open(target / f"shard-{shard}.tar", "w") as archive:
            for path in sorted(folder.iterdir()):
                if int(path.stem) % 2 == shard:
                    archive.add(path, path.name)
    return target


def table(folder):
    images = [str(folder / f"{i}.png") for i in range(6)]
    texts = [(folder / f"{i}.txt").read_text() for i in range(6)]
    return embedded({"id": list(range(6)), "image": images, "text": texts})


def embedded(columns):
    """A table that holds its images, as those on the hub do."""
    made = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    made = made.with_format("arrow")
    return made.map(datasets.table.embed_table_storage, batched=True, batch_size=3)


def as_parquet(folder, target):
    table(folder).to_parquet(target / "train.parquet", batch_size=4)
    return target / "train.parquet"


def as_hub_layout(folder, target):
    (target / "data").mkdir()
    (target / "README.md").write_text("a data set")
    made = table(folder)
    made.select(range(4)).to_parquet(target / "data" / "train-00000.parquet")
    made.select(range(4, 6)).to_parquet(target / "data" / "train-00001.parquet")
    return target


def as_saved_dataset(folder, target):
    table(folder).save_to_disk(target / "saved")
    return target / "saved"


FORMS = [as_zip, as_webdataset, as_parquet, as_hub_layout, as_saved_dataset]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains_the_same(folder, encoder, tmp_path, form):
    target = tmp_path / "other"
    target.mkdir()
    path = form(folder, target)
    found = scan([concept(path)])
    assert found.problems == ()
    assert sorted(item.captions[0] for item in found.items) == [f"picture {i}" for i in range(6)]
    plain = prepare(concept(folder), encoder, tmp_path / "plain")
    other = prepare(concept(path), encoder, tmp_path / "packed")

    def by_caption(data):
        batches = Batches(data, 1, 1)
        got = (next(batches) for _ in range(6))
        return {batch.captions[0]: batch.latents for batch in got}

    expected, actual = by_caption(plain), by_caption(other)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[key], actual[key]) for key in expected)


def test_the_same_pictures_in_another_form_cost_nothing(folder, encoder, tmp_path):
    prepare(concept(folder), encoder, tmp_path / "cache")
    prepare(concept(as_zip(folder, tmp_path)), encoder, tmp_path / "cache")
    assert encoder.images == 6


def test_masks_come_from_archives_too(folder, encoder, tmp_path):
    picture(3, mode="L").save(folder / "0-masklabel.png")
    data = prepare(concept(as_zip(folder, tmp_path)), encoder, tmp_path / "cache", masks=True)
    assert next(Batches(data, 6, 1)).mask.shape == (6, 1, 8, 8)


def told(path):
    (problem,) = scan([concept(path)]).problems
    return str(problem)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.parquet", "a.arrow"])
def test_a_broken_archive_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK not really")
    text = told(tmp_path / name)
    assert name in text
    assert "cannot be read" in text
    assert "Choose a whole" in text


def test_a_compressed_tar_says_what_would_work(folder, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.add(folder / "0.png", "0.png")
    assert "not compressed" in told(tmp_path / "a.tar")


def test_a_table_without_images_names_its_columns(tmp_path):
    datasets.Dataset.from_dict({"a": [1], "b": ["x"]}).to_parquet(tmp_path / "t.parquet")
    assert "no column of images among a, b" in told(tmp_path / "t.parquet")


def test_a_file_that_is_no_set(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert ".arrow, .parquet, .tar, .zip" in told(tmp_path / "notes.txt")


def test_archives_beside_images_are_not_read_in_silence(folder, tmp_path):
    as_zip(folder, folder)
    found = scan([concept(folder)])
    assert len(found.items) == 6
    assert "set.zip" in str(found.problems[0])
    assert "concept of its own" in str(found.problems[0])


def test_an_unknown_hub_id_says_so(tmp_path):
    text = told("nobody/no-such-set")
    assert "nobody/no-such-set" in text
    assert "Check the name and the connection" in text


def test_a_damaged_member_is_left_out(folder, encoder, tmp_path):
    path = as_zip(folder, tmp_path)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("pictures/3.png")
    content = bytearray(path.read_bytes())
    for offset in range(60, 90):
        content[info.header_offset + offset] ^= 0x55
    path.write_bytes(content)
    found = scan([concept(path)])
    assert len(found.items) == 5
    assert "3.png" in str(found.problems[0])


def test_a_member_that_promises_too_much_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("modules.data.archives.MAX_FILE", 300)
    found = scan([concept(as_zip(folder, tmp_path))])
    assert any(problem.kind == "too large" for problem in found.problems)


def test_several_captions_of_a_row_are_alternatives(tmp_path):
    picture(0).save(tmp_path / "a.png")
    rows = {"image": [str(tmp_path / "a.png")], "captions": [["one\nline", "two"]]}
    embedded(rows).to_parquet(tmp_path / "t.parquet")
    (item,) = scan([concept(tmp_path / "t.parquet")]).items
    assert item.captions == ("one line", "two")
    assert read(item.source, item.name) == (tmp_path / "a.png").read_bytes()


def test_a_table_that_only_names_its_images_says_what_to_do(folder, tmp_path):
    named = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": "a.png"}]})
    named.to_parquet(tmp_path / "t.parquet")
    (problem,) = [p for p in scan([concept(tmp_path / "t.parquet")]).problems if p.skipped][:1]
    assert "embed the images themselves" in str(problem)
