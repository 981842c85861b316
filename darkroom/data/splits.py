"""Which photo is trained on and which is held out: decided by the photo itself, so that it never changes sides."""

from collections.abc import Sequence


def split_by_hash(hashes: Sequence[str], val_fraction: float) -> dict[str, list[str]]:
    """sha256 hex digests to {"train": ..., "val": ...}, each sorted.

    A photo is held out if its hash, read as a fraction of all hashes, is below `val_fraction`. With so few photos that one
    side is empty, the lowest hash goes to val, or the highest to train.

    Raises:
        ValueError: fewer than two photos.
    """
    if len(hashes) < 2:
        raise ValueError(f"{len(hashes)} usable photo; at least two are needed, one to train on and one to hold out. Add photos.")
    ordered = sorted(hashes)
    num_val = sum(int(digest[:16], 16) < val_fraction * 2**64 for digest in ordered)
    num_val = min(max(num_val, 1), len(ordered) - 1)
    return {"train": ordered[num_val:], "val": ordered[:num_val]}
