import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darkroom.data.picture import encode
from darkroom.data.shards import ImageShards, ShardReader, Spool, num_shards_for, shard_of, write_shards, write_spooled
from darkroom.provenance import write_index


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def picture(number: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def samples(numbers: range) -> list[dict[str, str | bytes]]:
    fields = ({"caption": f"cat {number}", "attributes": {"breed": number}} for number in numbers)
    return [{"__key__": key_of(n), "png": png(picture(n)), "json": json.dumps(f).encode()} for n, f in zip(numbers, fields, strict=True)]


def finish(folder: Path, content: dict) -> None:
    write_index(folder, stage="ingest", params={}, inputs={}, content=content)


def write(folder: Path, numbers: range, samples_per_shard: int = 4) -> Path:
    folder.mkdir()
    table = write_shards(folder, "train", samples(numbers), samples_per_shard=samples_per_shard)
    finish(folder, {"splits": {"train": table}, "size": 8, "format": "png"})
    return folder


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_the_same_samples_in_any_order_give_the_same_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_shards(tmp_path / "a", "train", samples(range(20)), samples_per_shard=4)
    write_shards(tmp_path / "b", "train", reversed(samples(range(20))), samples_per_shard=4)
    assert tars(tmp_path / "a") == tars(tmp_path / "b")
    assert len(tars(tmp_path / "a")) == 8


def test_members_are_plain_ustar_entries_without_clock_or_user(tmp_path):
    folder = write(tmp_path / "shards", range(3))
    with tarfile.open(folder / "train-00000.tar", "r:") as tar:
        entries = tar.getmembers()
        assert tar.pax_headers == {}
    assert len(entries) == 6
    assert {(e.mtime, e.uname, e.gname, e.uid, e.gid, e.mode, e.type) for e in entries} == {
        (0, "darkroom", "darkroom", 0, 0, 0o444, tarfile.REGTYPE)
    }
    assert [e.name for e in entries] == sorted(e.name for e in entries)


def test_webdataset_streams_what_the_reader_reads_at_random(tmp_path):
    from webdataset import WebDataset

    folder = write(tmp_path / "shards", range(20))
    reader = ShardReader(folder, "train")
    streamed = {s["__key__"]: s for path in sorted(folder.glob("*.tar")) for s in WebDataset(str(path), shardshuffle=False)}
    assert sorted(streamed) == reader.keys == sorted(key_of(n) for n in range(20))
    for i in (7, 0, 19):
        for member in ("png", "json"):
            assert bytes(reader.member(i, member)) == streamed[reader.keys[i]][member]


def test_one_more_sample_changes_one_shard(tmp_path):
    before = tars(write(tmp_path / "before", range(40), samples_per_shard=8))
    after = tars(write(tmp_path / "after", range(41), samples_per_shard=8))
    assert before.keys() == after.keys()
    assert sum(before[name] != after[name] for name in before) == 1


def test_twice_the_shards_cut_each_shard_in_two():
    for number in range(200):
        assert shard_of(key_of(number), 16) // 2 == shard_of(key_of(number), 8)


def test_shards_hold_about_as_many_samples_as_aimed_at():
    assert [num_shards_for(n, 100) for n in (0, 1, 100, 101, 200, 201, 800)] == [1, 1, 1, 2, 2, 4, 8]
    counts = np.bincount([shard_of(key_of(n), 8) for n in range(800)], minlength=8)
    assert counts.min() > 70
    assert counts.max() < 130


def test_the_keys_of_one_split_fill_all_shards():
    """Val holds the lowest hashes: a shard chosen by the hash itself would get them all."""
    lowest = sorted(key_of(n) for n in range(4000))[:80]
    assert {shard_of(key, 4) for key in lowest} == {0, 1, 2, 3}


def test_a_shard_without_samples_is_still_an_archive(tmp_path):
    table = write_shards(tmp_path, "train", samples(range(2)), samples_per_shard=1)
    table += write_shards(tmp_path, "val", [], samples_per_shard=1)
    assert table[-1] == {"shard": "val-00000.tar", "samples": []}
    with tarfile.open(tmp_path / "val-00000.tar", "r:") as tar:
        assert tar.getmembers() == []


def test_a_spool_gives_each_split_its_samples_and_leaves_no_file(tmp_path):
    with Spool(tmp_path) as spool:
        for sample in samples(range(6)):
            spool.add(sample)
            assert spool.read(key_of(0)) == samples(range(1))[0]
        keys = spool.keys
        assert [spool.read(key) for key in keys] == samples(range(6))
        tables = {
            "train": write_spooled(tmp_path, "train", spool, keys[2:], samples_per_shard=100),
            "val": write_spooled(tmp_path, "val", spool, keys[:2], samples_per_shard=100),
        }
    finish(tmp_path, {"splits": tables})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "train-00000.tar", "val-00000.tar"]
    assert ShardReader(tmp_path, "val").keys == sorted(keys[:2])
    assert ShardReader(tmp_path, "train").json(0)["caption"].startswith("cat ")


def test_two_samples_of_one_key_are_refused(tmp_path):
    with pytest.raises(AssertionError, match="two samples have the key"):
        write_shards(tmp_path, "train", samples(range(2)) + samples(range(1)), samples_per_shard=4)


def test_a_key_with_a_dot_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="first dot"):
        write_shards(tmp_path, "train", [{"__key__": "a.b", "json": b"{}"}], samples_per_shard=4)


def test_an_unknown_split_is_an_error_that_names_the_known_ones(tmp_path):
    folder = write(tmp_path / "shards", range(3))
    with pytest.raises(ValueError, match=r"shards has no split `test` \(known: train\)"):
        ShardReader(folder, "test")


def test_a_folder_without_shards_is_refused(tmp_path):
    finish(tmp_path, {})
    with pytest.raises(ValueError, match=r"no split `train` .*does not hold shards"):
        ShardReader(tmp_path, "train")


def test_a_deleted_shard_is_an_error_that_names_it(tmp_path):
    folder = write(tmp_path / "shards", range(20))
    (folder / "train-00003.tar").unlink()
    with pytest.raises(ValueError, match=r"train-00003\.tar is missing"):
        ShardReader(folder, "train")


def test_a_missing_member_is_an_error_that_names_sample_and_shard(tmp_path):
    reader = ShardReader(write(tmp_path / "shards", range(2)), "train")
    with pytest.raises(ValueError, match=rf"Sample {reader.keys[1]} of .*train-00000.tar has no `npy` \(it has json, png\)"):
        reader.member(1, "npy")


def test_image_shards_give_back_pixels_and_captions(tmp_path):
    shards = ImageShards(write(tmp_path / "shards", range(10)), "train")
    numbers = {key_of(n): n for n in range(10)}
    order = [numbers[key] for key in shards.keys]
    assert len(shards) == 10
    assert shards.size == 8
    np.testing.assert_array_equal(shards.images([3, 0, 3]), np.stack([picture(order[i]) for i in (3, 0, 3)]))
    assert shards.captions == [f"cat {n}" for n in order]


def test_image_shards_refuse_a_folder_of_something_else(tmp_path):
    table = write_shards(tmp_path, "train", [{"__key__": "a", "json": b"{}"}], samples_per_shard=4)
    finish(tmp_path, {"splits": {"train": table}})
    with pytest.raises(ValueError, match="does not hold photos"):
        ImageShards(tmp_path, "train")


def write_photos(folder: Path, *, full: bool) -> ImageShards:
    """Three photos at 8 px: one of 300 x 200 px, one of 40 x 30 px, one of 8 x 8 px; the first two at full size too if `full`."""
    folder.mkdir()
    made: list[dict[str, str | bytes]] = []
    for number, (width, height) in enumerate([(300, 200), (40, 30), (8, 8)]):
        fields = {"caption": "cat", "width": width, "height": height}
        made.append({"__key__": f"{number}", "png": png(picture(number)), "json": json.dumps(fields).encode()})
        if full and height > 8:
            made[-1]["full.jpg"] = encode(np.full((height, height, 3), 40 * number, np.uint8), "jpeg", 95)
    table = write_shards(folder, "val", made, samples_per_shard=4)
    finish(folder, {"splits": {"val": table}, "size": 8, "format": "png"})
    return ImageShards(folder, "val")


def test_photos_are_read_at_full_size_all_on_one_side(tmp_path):
    photos = write_photos(tmp_path / "shards", full=True)
    assert photos.with_full_size == [0, 1, 2]
    images = photos.full_images([1, 2, 0])
    assert images.shape == (3, 256, 256, 3)
    assert (images[0] == 40).all()
    assert (images[2] == 0).all()
    enlarged = Image.fromarray(picture(2)).resize((256, 256), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(images[1], np.asarray(enlarged))  # it has no more pixels than the shard holds


def test_a_photo_is_as_large_as_the_square_that_was_cut_out_of_it(tmp_path):
    (tmp_path / "shards").mkdir()
    fields = {"caption": "cat", "width": 900, "height": 700}
    samples = [
        {"__key__": "0", "png": png(picture(0, 64)), "full.jpg": png(picture(0, 256)), "json": json.dumps(fields).encode()},
        {"__key__": "1", "png": png(picture(1, 64)), "json": json.dumps(fields | {"crop": [9, 9, 73, 73]}).encode()},
        {"__key__": "2", "png": png(picture(2, 64)), "json": json.dumps(fields | {"crop": [9, 9, 209, 209]}).encode()},
    ]
    table = write_shards(tmp_path / "shards", "val", samples, samples_per_shard=4)
    finish(tmp_path / "shards", {"splits": {"val": table}, "size": 64, "format": "png"})
    assert ImageShards(tmp_path / "shards", "val").with_full_size == [0, 1]  # of the third one, the shard does not hold all


def test_shards_of_an_older_version_have_no_photo_at_full_size(tmp_path):
    photos = write_photos(tmp_path / "shards", full=False)
    assert photos.with_full_size == []
    with pytest.raises(ValueError, match=r"Sample 0 of .*val-00000\.tar has no `full\.jpg` \(it has json, png\)"):
        photos.full_images([0])


def test_full_size_is_no_less_than_the_working_side(tmp_path):
    (tmp_path / "shards").mkdir()
    fields = json.dumps({"caption": "cat", "width": 900, "height": 700}).encode()
    table = write_shards(tmp_path / "shards", "val", [{"__key__": "0", "png": png(picture(0, 320)), "json": fields}], samples_per_shard=4)
    finish(tmp_path / "shards", {"splits": {"val": table}, "size": 320, "format": "png"})
    photos = ImageShards(tmp_path / "shards", "val")
    np.testing.assert_array_equal(photos.full_images([0]), photos.images([0]))
