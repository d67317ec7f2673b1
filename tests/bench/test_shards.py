"""Loaders of Parquet shards and of WebDataset shards, on tiny files in the real formats."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
import tracemalloc

import pyarrow
import pyarrow.parquet as parquet
import pytest

from finelens.bench.sets.find import find_data
from finelens.bench.sets.webdataset import LABELS, MOST_LABEL_BYTES
from finelens.errors import UserError
from finelens.images.store import load_images
from finelens.images.tar_shards import members
from tests.bench.small_files import jpeg, statuses
from tests.bench.test_sets import labels, picture


def write_shard(path, rows, names=("house_cat", "dog"), group=2):
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    table = pyarrow.table({"image": [{"bytes": data, "path": "x.jpg"} for data, _ in rows], "label": [label for _, label in rows]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=group)


def test_hugging_face_shards(tmp_path):
    folder = tmp_path / "pets-hf"
    write_shard(folder / "data/train-00000-of-00002.parquet", [(jpeg(i), i % 2) for i in range(3)])
    write_shard(folder / "data/train-00001-of-00002.parquet", [(jpeg(3), 1)])
    write_shard(folder / "data/validation-00000-of-00001.parquet", [(jpeg(4, "PNG"), 1), (b"damaged", 0), (None, 0)])
    data = find_data("pets-hf", tmp_path)[1]()
    assert data.class_names == ("house cat", "dog")
    assert (labels(data.train), labels(data.test)) == ([0, 1, 0, 1], [1, 0, 0])
    assert data.split == "shards of train and validation, columns image and label"
    assert statuses(data.train) == ["ok"] * 4
    assert statuses(data.test) == ["ok", "corrupt", "corrupt"]
    for i in (3, 0, 2, 1):
        assert data.train.images[i].data == jpeg(i)
    assert len(set(data.train.names())) == 4
    # The same bytes are the same image, in a shard or in a folder.
    picture(tmp_path / "one.jpg", 2)
    (tmp_path / "one.jpg").write_bytes(jpeg(2))
    assert load_images([tmp_path / "one.jpg"]).store.ids[0] in load_images(data.train.images).store.ids
    (folder / "data/train-00000-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="1 of 2 shards of train"):
        find_data("pets-hf", tmp_path)[1]()


@pytest.mark.parametrize(
    ("names", "label", "message"), [(("cat", "lion"), 0, "other columns or class names"), (("house_cat", "dog"), 2, "none of the 2 classes")]
)
def test_shards_that_do_not_fit(tmp_path, names, label, message):
    write_shard(tmp_path / "train-00000-of-00001.parquet", [(jpeg(), label)], names)
    write_shard(tmp_path / "test-00000-of-00001.parquet", [(jpeg(1), 0)])
    with pytest.raises(UserError, match=message):
        find_data(str(tmp_path), None)[1]()


@pytest.mark.parametrize("column", ["image", "label"])
def test_damage_behind_the_description_of_a_parquet_file_is_told(tmp_path, column):
    for part in ("train", "test"):
        write_shard(tmp_path / f"{part}-00000-of-00001.parquet", [(jpeg(i), i % 2) for i in range(3)], group=4)
    shard = tmp_path / "test-00000-of-00001.parquet"
    chunks = parquet.ParquetFile(shard).metadata.row_group(0)
    place = next(chunks.column(i) for i in range(chunks.num_columns) if chunks.column(i).path_in_schema.startswith(column))
    start = place.dictionary_page_offset or place.data_page_offset
    content = bytearray(shard.read_bytes())
    content[start : start + 16] = bytes(255 - byte for byte in content[start : start + 16])
    shard.write_bytes(content)
    with pytest.raises(UserError, match=rf"its column {column} is damaged .*; download it again"):
        load_images(find_data(str(tmp_path), None)[1]().test.images)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("damage", ["checksum", "cut"])
def test_a_damaged_header_is_not_the_end_of_a_shard(tmp_path, mode, damage):
    shard = tmp_path / ("a.tar" if mode == "w" else "a.tar.gz")
    write_tar(shard, [("0.jpg", jpeg(0)), ("1.jpg", jpeg(1)), ("2.jpg", jpeg(2))], mode)
    content = bytearray(shard.read_bytes() if mode == "w" else gzip.decompress(shard.read_bytes()))
    header = content.index(b"1.jpg")
    content[header] += 1
    content = content if damage == "checksum" else content[: header + 100]
    shard.write_bytes(content if mode == "w" else gzip.compress(content))
    with pytest.raises(UserError, match=rf"a\.tar.*(bad checksum|truncated header) at byte {header}; download it again"):
        list(members(shard, (), 0))


def test_parquet_without_features_is_refused(tmp_path):
    for part in ("train", "test"):
        parquet.write_table(pyarrow.table({"image": [b""], "label": [0]}), tmp_path / f"{part}-00000-of-00001.parquet")
    with pytest.raises(UserError, match="names no image column"):
        find_data(str(tmp_path), None)[1]()


def test_without_pyarrow_the_message_says_what_to_install(tmp_path, monkeypatch):
    write_shard(tmp_path / "shards/train-00000-of-00001.parquet", [(jpeg(), 0)])
    write_shard(tmp_path / "shards/test-00000-of-00001.parquet", [(jpeg(1), 0)])
    for part in ("train", "test"):
        (tmp_path / "lists").mkdir(exist_ok=True)
        parquet.write_table(pyarrow.table({"path": ["x.png"], "label": ["dog"]}), tmp_path / f"lists/{part}.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for kind in ("shards", "lists"):
        with pytest.raises(UserError, match=r"Parquet needs pyarrow \(pip install pyarrow\)"):
            find_data(kind, tmp_path)[1]()


def write_tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("layout", ["flat", "folders"])
@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz"])
def test_webdataset(tmp_path, layout, ending):
    place = {part: f"{part}/0.{ending}" if layout == "folders" else f"{part}-000000.{ending}" for part in ("train", "test")}
    mode = "w" if ending == "tar" else "w:gz"
    train = [("a/0.jpg", jpeg(0)), ("a/0.cls", b"1\n"), ("b/0.png", jpeg(1, "PNG")), ("b/0.json", b'{"label": "House cat"}')]
    test = [("../../x.cls", b"0"), ("../../x.jpg", jpeg(2)), ("y.y.txt", b"no sample"), ("z.JPG", b"?"), ("z.cls", b"dog")]
    write_tar(tmp_path / place["train"], train, mode)
    write_tar(tmp_path / place["test"], test, mode)
    (tmp_path / "classnames.txt").write_text("house cat\ndog\n")
    before = sorted(path for path in tmp_path.rglob("*"))
    data = find_data(str(tmp_path), None)[1]()
    assert (labels(data.train), labels(data.test)) == ([1, 0], [0, 1])
    assert data.train.images[0].data == jpeg(0)
    assert (statuses(data.train), statuses(data.test)) == (["ok", "ok"], ["ok", "corrupt"])
    # In any order.
    assert [data.train.images[i].data for i in (1, 0, 1)] == [jpeg(1, "PNG"), jpeg(0), jpeg(1, "PNG")]
    assert sorted(path for path in tmp_path.rglob("*")) == before, "nothing is unpacked"


def test_webdataset_without_training_shards(tmp_path):
    write_tar(tmp_path / "test.tar", [("0.jpg", jpeg(0)), ("0.cls", b"0")])
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert labels(find_data(str(tmp_path), None)[1]().train) == []


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_names_with_dots_are_samples_of_their_own(tmp_path, ending):
    """A part with seven images has seven rows, whatever they are called; what is no sample is counted and one is named."""
    stems = ["000", "cam1.2021-05-01", "cam1.2021-05-02", "d.d/a.b.c", "d.d/a.b.d", "v1.0", "v1"]
    content = [(f"{stem}.{kind}", data) for i, stem in enumerate(stems) for kind, data in (("jpg", jpeg(i)), ("cls", str(i % 2).encode()))]
    content += [("000.txt", b"of a sample"), ("000.seg.npy", b"of a sample"), ("000.mask.png", jpeg(8)), ("000.meta.json", b"{}")]
    content += [("._000.jpg", b"of a system"), ("notes.txt", b"of no sample"), ("d.d/._a.b.c.jpg", b"of a system")]
    write_tar(tmp_path / f"test-0.{ending}", content, "w" if ending == "tar" else "w:gz")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = find_data(str(tmp_path), None)[1]()
    assert [name.partition("/")[2] for name in data.test.names()] == [f"{stem}.jpg" for stem in stems]
    assert labels(data.test) == [0, 1, 0, 1, 0, 1, 0]
    assert [image.data for image in data.test.images] == [jpeg(i) for i in range(7)]
    assert data.split == "0 train and 1 test shards"
    assert data.left_out == (f"5 members of no sample, first test-0.{ending}/._000.jpg",)


BAD_SHARDS = {
    "an image with dots and without label": ([("a.1.jpg", b"x"), ("a.2.jpg", b"x"), ("a.2.cls", b"0")], r"sample a\.1 has no label"),
    "two images for one label": ([("0.left.jpg", b"x"), ("0.right.jpg", b"x"), ("0.cls", b"0")], r"sample 0.left has no label"),
    "a member twice": ([("0.jpg", b"x"), ("0.cls", b"0"), ("0.jpg", b"y")], "two files"),
    "a sample without label": ([("0.jpg", b"x")], "sample 0 has no label"),
    "a sample without image": ([("0.cls", b"0")], "sample 0 has no image"),
    "a class that is none": ([("0.jpg", b"x"), ("0.cls", b"2")], "names none of the 2 classes"),
    "a negative class": ([("0.jpg", b"x"), ("0.json", b'{"label": -1}')], "names none of the 2 classes"),
    "a truth value": ([("0.jpg", b"x"), ("0.json", b'{"label": true}')], "names none of the 2 classes"),
    "broken JSON": ([("0.jpg", b"x"), ("0.json", b"{")], "holds no label"),
    "two of a kind": ([("0.jpg", b"x"), ("0.JPG", b"y"), ("0.cls", b"0")], "two files"),
}


@pytest.mark.parametrize("kind", BAD_SHARDS)
def test_a_bad_sample_is_one_line(tmp_path, kind):
    members, message = BAD_SHARDS[kind]
    write_tar(tmp_path / "test.tar", members)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=message):
        find_data(str(tmp_path), None)[1]()


def test_links_are_no_samples_and_bad_archives_are_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    with tarfile.open(tmp_path / "test.tar", "w") as archive:
        link = tarfile.TarInfo("0.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.jpg")
        archive.addfile(link)
    write_tar(tmp_path / "more.tar", [("0.cls", b"0")])
    assert len(find_data(str(tmp_path), None)[1]().test.labels) == 0
    whole = [("0.jpg", jpeg()), ("0.cls", b"0"), ("1.jpg", jpeg(1)), ("1.cls", b"0")]
    write_tar(tmp_path / "test.tar", whole)
    (tmp_path / "test.tar").write_bytes((tmp_path / "test.tar").read_bytes()[:700])
    with pytest.raises(UserError, match=r"test\.tar"):
        find_data(str(tmp_path), None)[1]()


@pytest.mark.parametrize("cut", [4, 300, 1500])
def test_a_compressed_shard_that_is_cut_or_damaged_is_one_line(tmp_path, cut):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    shard = tmp_path / "test.tar.gz"
    write_tar(shard, [(f"{i}.{kind}", data) for i in range(9) for kind, data in (("jpg", jpeg(i)), ("cls", b"0"))], "w:gz")
    whole = shard.read_bytes()
    for content in (whole[:-cut], whole[: cut + 50] + b"damage" + whole[cut + 56 :], b"no archive at all"):
        shard.write_bytes(content)
        with pytest.raises(UserError, match=r"test\.tar\.gz") as caught:
            find_data(str(tmp_path), None)[1]()
        assert "\n" not in str(caught.value)


def test_other_compressions_are_named_with_the_remedy(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "test-0.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(UserError, match=r"only .tar.gz is read; decompress it, for example zstd -d"):
        find_data(str(tmp_path), None)[1]()


def test_a_bomb_is_refused_before_it_fills_memory_or_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("finelens.images.tar_shards.FREE_BYTES", 1 << 20)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    shard = tmp_path / "test.tar.gz"
    write_tar(shard, [("0.jpg", bytes(200 << 20)), ("0.cls", b"0")], "w:gz")
    assert shard.stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(UserError, match="unpacks to more than 100 times its size"):
        list(members(shard, LABELS, MOST_LABEL_BYTES))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_header_that_claims_gigabytes_is_refused(tmp_path, ending):
    """tarfile reads extended headers whole, before anybody sees them."""
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 8 << 20
    content = header.tobuf(tarfile.USTAR_FORMAT) + bytes(8 << 20)
    (tmp_path / f"test.{ending}").write_bytes(content if ending == "tar" else gzip.compress(content))
    with pytest.raises(UserError, match="a header of 8388608 bytes"):
        find_data(str(tmp_path), None)[1]()
