"""The Hugging Face hub: how a folder of it is named, and the one way to download from it."""

import re
from collections.abc import Sequence
from pathlib import Path

PREFIX = "hf-hub:"  # what the names of folders on the hub begin with, in params.yaml
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FOLDER = re.compile(
    rf"{PREFIX}(?P<hub_id>{HUB_ID.pattern})(?P<folder>(/\w[\w.-]*)*)(@(?P<revision>[\w./-]+))?"  # a revision may have slashes: refs/pr/1
)
NAMING = f"{PREFIX}OWNER/NAME, with /FOLDER and @REVISION behind it if needed"


def is_hub_id(source: str) -> bool:
    return HUB_ID.fullmatch(source) is not None


def is_hub_folder(source: str) -> bool:
    return HUB_FOLDER.fullmatch(source) is not None


def download(hub_id: str, patterns: Sequence[str], *, ignore: Sequence[str] = (), revision: str | None = None) -> Path:
    """The repository in huggingface_hub's cache, with the files that fit one of `patterns`, downloaded if they are not there yet.

    The folder has the name of the commit. Without network, the commit that was downloaded last is taken from the cache.

    Args:
        patterns: of paths in the repository; `*` fits slashes too.
        ignore: patterns of paths that are not wanted.
        revision: a branch, a tag or a commit; None = the main branch.

    Raises:
        ValueError: the hub does not have the model or the revision, refuses access, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(ignore)))
    except (HFValidationError, HTTPError, OSError) as error:  # the name, the connection, the answer, the cache or the disk
        named = f"{hub_id}@{revision}" if revision else hub_id
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{named} is not a local path, and could not be downloaded from the Hugging Face hub: {reason} "
            "Correct the name, connect, or give a local folder with its files in its place."
        ) from error


def download_folder(source: str, kinds: Sequence[Sequence[str]]) -> tuple[Path, str]:
    """The folder of a repository that `source` names, with the files of one kind and no others.

    Args:
        source: as `NAMING` says; `darkroom.agreement` refuses others. Without a revision the main branch.
        kinds: a sequence of patterns of file names each. The first kind is taken that has a file for each of its patterns.

    Returns:
        The folder in huggingface_hub's cache, and `source` with the commit, because a branch moves.

    Raises:
        ValueError: the folder has no kind as a whole; as `download`.
    """
    found = HUB_FOLDER.fullmatch(source)
    assert found is not None, source
    below = found["folder"].removeprefix("/") + "/" if found["folder"] else ""
    for patterns in kinds:
        wanted = [below + pattern for pattern in patterns]
        repository = download(found["hub_id"], wanted, ignore=[f"{below}*/*"], revision=found["revision"])
        folder = repository / below
        if all(any(folder.glob(pattern)) for pattern in patterns):
            return folder, f"{PREFIX}{found['hub_id']}{found['folder']}@{repository.name}"
    raise ValueError(
        f"{source} has none of {', and none of '.join(' with '.join(f'`{pattern}`' for pattern in patterns) for patterns in kinds)}. Name "
        f"the folder that has them ({NAMING}; the VAE of a pipeline is in /vae), or a local one. Weights are never read from a pickle."
    )
