"""Reading cached latents: our memory-mapped reader in random order against WebDataset's own loop over the same tars."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import webdataset

from benchmarks.ratio import Ratio, measure
from darkroom.data.latents import LatentShards, caption_key, write_captions, write_latents
from darkroom.provenance import write_index

NUM, SHAPE = 4096, (4, 32, 32)


def ratios() -> Iterator[Ratio]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cache(folder)
        shards = LatentShards(folder, "train")
        order = np.random.default_rng(0).permutation(NUM).tolist()

        def ours() -> None:
            for start in range(0, NUM, 64):
                shards.moments(order[start : start + 64], [0] * 64)

        def stock() -> None:
            dataset = webdataset.WebDataset([str(path) for path in sorted(folder.glob("train-*.tar"))], shardshuffle=False)
            batch = []
            for sample in dataset.decode():
                batch.append(sample["moments.npy"])
                if len(batch) == 64:
                    np.stack(batch).astype(np.float32)
                    batch.clear()

        yield measure(f"{NUM} latents of 4x32x32 in batches of 64", {"stock webdataset": stock, "ours, shuffled": ours}, turns=5)


def write_cache(folder: Path) -> None:
    moments = np.random.default_rng(0).standard_normal((1, 2, *SHAPE)).astype(np.float32)
    samples = ((f"{index:064x}", "a cat", [(0.0, 0.0, 0.0, 0.0)], moments) for index in range(NUM))
    splits = {
        "train": write_latents(folder, split="train", samples=samples, samples_per_shard=1000),
        "captions": write_captions(folder, [("", np.zeros((8, 16))), ("a cat", np.zeros((8, 16)))], samples_per_shard=1000),
    }
    content = {
        "splits": splits,
        "latent_shape": SHAPE,
        "context_shape": (8, 16),
        "views": {"train": 1},
        "empty_caption_key": caption_key(""),
    }
    write_index(folder, stage="benchmark", params={}, inputs={}, content=content)
