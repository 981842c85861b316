"""Output folders with an index.json: written completely or not at all, and checked by each reader.

`index.json` holds `stage`, `params`, `inputs` (name -> fingerprint), `ancestors` (the inputs of the inputs), `files` (path -> bytes
and sha256), `fingerprint` (sha256 of the files table) and `content` (added by the stage). It contains no time, no run id and no hash
of the code: if a stage runs again and writes the same bytes, the stages behind it do not re-run. The run id and the code identity are
in `data/runs/<stage>.json`.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

INDEX = "index.json"
IMPORT = "import"  # stands in the index instead of a stage if `darkroom import` wrote the folder
PARTS_OF_UNET = {  # what a U-Net belongs to: its name, and the parameters that bring it
    "vae": ("VAE", "train_vae.init: {}"),
    "clip": ("text encoder", "train_clip.mode: pretrained with train_clip.pretrained: {}"),
}


def canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def hash_json(value: Any) -> str:
    """sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield `path.tmp` (a file or folder to write) and rename it to `path` at the end; on an error, remove it.

    Raises:
        OSError: e.g. the disk is full; then `path.tmp` is removed and `path` is not changed.
    """
    tmp = path.with_name(path.name + ".tmp")
    _remove(tmp)
    tmp.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield tmp
        sync(tmp)
        _remove(path)
        tmp.rename(path)
    except BaseException:
        _remove(tmp)
        raise


def sync(path: Path) -> None:
    """Flush a file, or a folder with everything in it, to the disk."""
    for item in [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]:
        descriptor = os.open(item, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def files_table(folder: Path) -> dict[str, dict[str, Any]]:
    """relative path -> {bytes, sha256} of every file below `folder` except its index.json."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / INDEX)
    return {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": hash_file(path)} for path in files}


def write_index(
    folder: Path,
    *,
    stage: str,
    params: dict[str, Any],
    inputs: dict[str, dict[str, Any]],  # name -> the input's own index
    content: dict[str, Any],
) -> None:
    """Write `folder/index.json` for the files that are in the folder now."""
    files = files_table(folder)
    ancestors: dict[str, str] = {}
    for index in inputs.values():
        ancestors |= index["ancestors"]
    ancestors |= {name: index["fingerprint"] for name, index in inputs.items()}
    index = {
        "stage": stage,
        "params": params,
        "inputs": {name: index["fingerprint"] for name, index in inputs.items()},
        "ancestors": ancestors,
        "files": files,
        "fingerprint": hash_json(files),
        "content": content,
    }
    lines = [f"{canonical_json(key)}: {canonical_json(value)}" for key, value in index.items()]  # a line per key
    (folder / INDEX).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read_index(folder: Path) -> dict[str, Any]:
    """Read the index of an output folder and check that every file in it exists with its size.

    Raises:
        ValueError: the index is missing, or a file is missing or has another size.
    """
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder / INDEX} not found, so {folder} is not a finished output of a stage. Make it with `dvc repro`.")
    index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    for name, entry in index["files"].items():
        file = folder / name
        if not file.is_file():
            problem = "is missing"
        elif file.stat().st_size != entry["bytes"]:
            problem = f"has {file.stat().st_size} bytes instead of {entry['bytes']}"
        else:
            continue
        again = f"Restore it with `dvc checkout {folder}` or make it again with `dvc repro --force --single-item {index['stage']}`."
        raise ValueError(
            f"{file} {problem}, but {folder / INDEX} lists it, so it was changed after `{index['stage']}` wrote it. "
            + ("Import the model again." if index["stage"] == IMPORT else again)
        )
    return index


def check_lineage(indexes: dict[str, dict[str, Any]]) -> None:
    """Check that folders belong together, e.g. that a U-Net was trained with this VAE.

    Args:
        indexes: name of an output (`vae`, `unet`) -> its index.

    Raises:
        ValueError: one of the folders was made from another version of a second one.
    """
    for name, index in indexes.items():
        for ancestor, fingerprint in index["ancestors"].items():
            if ancestor in indexes and indexes[ancestor]["fingerprint"] != fingerprint:
                raise ValueError(
                    f"`{name}` was made from another `{ancestor}` (fingerprint {fingerprint[:12]}) than this one "
                    f"({indexes[ancestor]['fingerprint'][:12]}). Use the folders of one run, or make `{name}` again with `dvc repro`."
                )


def photos_prepared_by(folder: Path) -> dict[str, Any]:
    """The parameters (section -> keys) by which photos get crops, captions and latents like those that a U-Net has learned.

    Args:
        folder: of the U-Net.

    Returns:
        {} if nobody knows: the U-Net was imported, or trained by an older version.
    """
    file = folder / INDEX
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["content"].get("prepared_by", {}) if file.is_file() else {}
    return found


def check_made_with(folder: Path, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a U-Net that was made with another VAE or text encoder than this run has: its latents or prompts mean something else.

    A part fits if it has the weights that the U-Net was made with, or was trained further from them.

    Args:
        folder: of the U-Net; its index.json says what it was made with, otherwise a warning is logged.
        parts: vae and clip -> the content of their index.json, with the fingerprints `weights` and `init` (what training began with).

    Raises:
        ValueError: a part is another one.
    """
    file = folder / INDEX
    made_with = json.loads(file.read_text(encoding="utf-8"))["content"].get("made_with") if file.is_file() else None
    if made_with is None:
        logger.warning("%s does not say which VAE and text encoder the U-Net was made with: whether they fit is not checked", file)
        return
    wrong = [part for part, content in parts.items() if made_with[part] not in (content["weights"], content["init"])]
    if wrong:
        found = " and ".join(
            f"{PARTS_OF_UNET[part][0]} {made_with[part][:12]} (here it is {parts[part]['weights'][:12]})" for part in wrong
        )
        settings = " and ".join(PARTS_OF_UNET[part][1].format(folder.parent / part) for part in wrong)
        raise ValueError(
            f"The U-Net of train_unet.init ({folder}) was made with other parts of a model than this run has: {found}. It would draw "
            f"noise, or ignore prompts. Set {settings}; or `darkroom tune --from {folder.parent}`, which sets all of them."
        )
