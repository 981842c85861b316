import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from darkroom import provenance
from darkroom.provenance import (
    canonical_json,
    check_lineage,
    files_table,
    hash_file,
    hash_json,
    read_index,
    replacing,
    write_index,
)


def make(folder: Path, files: dict[str, str], inputs: dict[str, dict[str, Any]] | None = None, **content: Any) -> dict[str, Any]:
    """A finished output folder, and its index as a reader gets it."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    write_index(folder, stage="train_vae", params={"steps": 3}, inputs=inputs or {}, content=content)
    return read_index(folder)


def test_a_hash_of_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": [1, "ü"], "a": None}) == '{"a":null,"b":[1,"ü"]}'
    assert hash_json({"b": 1, "a": 2}) == hash_json({"a": 2, "b": 1}) == hashlib.sha256(b'{"a":2,"b":1}').hexdigest()
    assert hash_json([1, 2]) != hash_json([2, 1])


def test_a_hash_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"cat" * 1_000_000)
    assert hash_file(tmp_path / "a") == hashlib.sha256(b"cat" * 1_000_000).hexdigest()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_output_takes_its_name_only_when_it_is_whole(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "new" / "out"

    def fill(path: Path, text: str) -> None:
        if kind == "folder":
            path.mkdir()
            path = path / "inner"
        path.write_text(text)

    def content() -> str:
        return (out / "inner" if kind == "folder" else out).read_text()

    with replacing(out) as tmp:
        fill(tmp, "old")
        assert not out.exists()
    with replacing(out) as tmp:
        fill(tmp, "new")
        assert content() == "old"
    assert content() == "new"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_work_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "out"
    out.write_text("old")
    with pytest.raises(type(error)), replacing(out) as tmp:  # noqa: PT012
        tmp.mkdir()
        (tmp / "half").write_text("x")
        raise error
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_a_disk_that_is_full_at_the_last_moment_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "out").write_text("old")
    monkeypatch.setattr(provenance, "sync", full)
    with pytest.raises(OSError, match="No space left"), replacing(tmp_path / "out") as tmp:
        tmp.write_text("new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out", "old")]


def test_a_rest_of_a_killed_run_does_not_get_into_the_output(tmp_path: Path) -> None:
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "rest").write_text("of a killed run")
    with replacing(tmp_path / "out") as tmp:
        tmp.mkdir()
        (tmp / "a").write_text("x")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("x")
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with replacing(tmp_path / "out") as tmp:
        tmp.mkdir()
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "elsewhere" / "precious").read_text() == "x"


def test_the_table_of_files_leaves_out_the_index_of_the_folder_itself_only(tmp_path: Path) -> None:
    make(tmp_path / "out", {"a": "1", "sub/index.json": "{}"})
    assert files_table(tmp_path / "out") == {
        "a": {"bytes": 1, "sha256": hashlib.sha256(b"1").hexdigest()},
        "sub/index.json": {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()},
    }


def test_the_same_work_gives_the_same_index(tmp_path: Path) -> None:
    first = make(tmp_path / "first", {"a": "1", "b/c": "2"}, splits=["train"])
    second = make(tmp_path / "second", {"b/c": "2", "a": "1"}, splits=["train"])
    assert (tmp_path / "first" / "index.json").read_bytes() == (tmp_path / "second" / "index.json").read_bytes()
    assert first == second
    assert first["content"] == {"splits": ["train"]}
    assert (first["stage"], first["params"]) == ("train_vae", {"steps": 3})


def test_the_fingerprint_is_that_of_the_files(tmp_path: Path) -> None:
    plain = make(tmp_path / "plain", {"a": "1"})
    told = make(tmp_path / "told", {"a": "1"}, told="more")
    other = make(tmp_path / "other", {"a": "2"})
    renamed = make(tmp_path / "renamed", {"b": "1"})
    assert plain["fingerprint"] == told["fingerprint"]
    assert len({plain["fingerprint"], other["fingerprint"], renamed["fingerprint"]}) == 3


def test_an_index_names_its_inputs_and_theirs(tmp_path: Path) -> None:
    shards = make(tmp_path / "shards", {"a": "1"})
    vae = make(tmp_path / "vae", {"w": "2"}, {"shards": shards})
    latents = make(tmp_path / "latents", {"l": "3"}, {"vae": vae})
    assert latents["inputs"] == {"vae": vae["fingerprint"]}
    assert latents["ancestors"] == {"vae": vae["fingerprint"], "shards": shards["fingerprint"]}


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"index\.json not found, so .* is not a finished output of a stage\. Make it with `dvc repro`"):
        read_index(tmp_path)


def test_a_file_that_is_gone_or_has_changed_its_size_is_named(tmp_path: Path) -> None:
    make(tmp_path / "out", {"train-00000.tar": "123", "val-00000.tar": "123"})
    (tmp_path / "out" / "train-00000.tar").write_text("12")
    with pytest.raises(ValueError, match=r"train-00000\.tar has 2 bytes instead of 3.*dvc checkout.*--single-item train_vae"):
        read_index(tmp_path / "out")
    (tmp_path / "out" / "train-00000.tar").unlink()
    with pytest.raises(ValueError, match=r"train-00000\.tar is missing, but .*index\.json lists it"):
        read_index(tmp_path / "out")


def test_folders_of_one_run_belong_together(tmp_path: Path) -> None:
    shards = make(tmp_path / "shards", {"a": "1"})
    vae = make(tmp_path / "vae", {"w": "2"}, {"shards": shards})
    unet = make(tmp_path / "unet", {"u": "3"}, {"vae": vae})
    check_lineage({"shards": shards, "vae": vae, "unet": unet})
    check_lineage({"unet": unet})  # what is not given cannot be wrong


@pytest.mark.parametrize("replaced", ["shards", "vae"])
def test_a_unet_beside_another_vae_or_other_photos_is_refused(tmp_path: Path, replaced: str) -> None:
    shards = make(tmp_path / "shards", {"a": "1"})
    vae = make(tmp_path / "vae", {"w": "2"}, {"shards": shards})
    unet = make(tmp_path / "unet", {"u": "3"}, {"vae": vae})
    other = make(tmp_path / "other", {"w": "another"})
    with pytest.raises(ValueError, match=f"`unet` was made from another `{replaced}` .fingerprint {unet['ancestors'][replaced][:12]}"):
        check_lineage({"unet": unet, replaced: other})


def test_an_index_has_no_clock_and_no_path_of_this_machine(tmp_path: Path) -> None:
    make(tmp_path / "out", {"a": "1"})
    text = (tmp_path / "out" / "index.json").read_text()
    assert str(tmp_path) not in text
    assert set(json.loads(text)) == {"stage", "params", "inputs", "ancestors", "files", "fingerprint", "content"}
