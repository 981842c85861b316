"""Samples in a file: whole or drawn again, the same bytes for any number of processes, and never all in memory."""

import multiprocessing
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from darkroom.evaluation.drawn import DrawnSamples, draw_samples
from darkroom.progress import progress

SIZE = (4, 6)
NUM = 11
PROMPTS = [f"cat {index}" for index in range(NUM)]
SEEDS = list(range(100, 100 + NUM))


def picture(prompt: str, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, len(prompt)]).integers(0, 256, (*SIZE, 3), np.uint8)


EXPECTED = np.stack([picture(prompt, seed) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)])


class Artist:
    """Draws, remembers the seeds that it was asked for, and dies before batch number `last`."""

    def __init__(self, last: int = 1000) -> None:
        self.seeds: list[int] = []
        self.left = last

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.seeds += seeds
        return np.stack([picture(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)])


def drawn(path: Path, artist: Artist, batch_size: int = 4, rank: int = 0, world: int = 1, prompts: list[str] = PROMPTS) -> DrawnSamples:
    return draw_samples(artist, prompts, SEEDS, path, size=SIZE, batch_size=batch_size, rank=rank, world=world)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_samples_come_back_in_the_order_of_their_prompts(tmp_path, batch_size):
    samples = drawn(tmp_path / "new" / "samples", Artist(), batch_size)
    assert len(samples) == NUM
    np.testing.assert_array_equal(samples.images(range(NUM)), EXPECTED)
    np.testing.assert_array_equal(samples.images([10, 0, 0, -1]), EXPECTED[[10, 0, 0, -1]])
    assert samples.images([]).shape == (0, *SIZE, 3)
    assert samples.path.stat().st_size == EXPECTED.nbytes


def test_a_sample_beyond_the_last_one_is_an_error(tmp_path):
    with pytest.raises(IndexError):
        drawn(tmp_path / "samples", Artist()).images([NUM])


def test_a_killed_run_keeps_what_it_has_drawn(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        drawn(tmp_path / "samples", Artist(last=2))
    second = Artist()
    samples = drawn(tmp_path / "samples", second)
    assert second.seeds == SEEDS[8:]
    np.testing.assert_array_equal(samples.images(range(NUM)), EXPECTED)
    third = Artist()
    drawn(tmp_path / "samples", third)
    assert third.seeds == []


def test_a_resumed_run_says_how_much_it_keeps(tmp_path, caplog):
    drawn(tmp_path / "samples", Artist())
    with caplog.at_level("INFO"):
        drawn(tmp_path / "samples", Artist())
    assert "3 of 3 batches of samples are already drawn" in caplog.text


def test_a_half_written_batch_is_drawn_again(tmp_path):
    path = tmp_path / "samples"
    drawn(path, Artist())
    with path.open("r+b") as file:  # as if the machine had lost a part of the second batch
        file.seek(6 * EXPECTED[0].nbytes)
        file.write(bytes(EXPECTED[0].nbytes // 2))
    again = Artist()
    np.testing.assert_array_equal(drawn(path, again).images(range(NUM)), EXPECTED)
    assert again.seeds == SEEDS[4:8]


def test_a_cut_file_and_a_lost_record_are_drawn_again(tmp_path):
    path = tmp_path / "samples"
    drawn(path, Artist())
    with path.open("r+b") as file:
        file.truncate(9 * EXPECTED[0].nbytes)
    again = Artist()
    np.testing.assert_array_equal(drawn(path, again).images(range(NUM)), EXPECTED)
    assert again.seeds == SEEDS[8:]
    (tmp_path / "samples.done").unlink()
    drawn(path, again := Artist())
    assert again.seeds == SEEDS


def test_black_samples_are_samples_too(tmp_path):
    def black(prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        return np.zeros((len(prompts), *SIZE, 3), np.uint8)

    draw_samples(black, PROMPTS, SEEDS, tmp_path / "samples", size=SIZE, batch_size=4)
    assert any((tmp_path / "samples.done").read_bytes())
    drawn(tmp_path / "samples", again := Artist())
    assert again.seeds == []  # the record names them: they were drawn


def test_samples_of_other_prompts_are_not_kept(tmp_path):
    drawn(tmp_path / "samples", Artist())
    drawn(tmp_path / "samples", again := Artist(), prompts=[*PROMPTS[:10], "a dog"])
    assert again.seeds == SEEDS[8:]


def test_a_picture_of_another_size_is_refused(tmp_path):
    with pytest.raises(AssertionError, match=r"drawn: \(11, 4, 6, 3\)"):
        draw_samples(Artist(), PROMPTS, SEEDS, tmp_path / "samples", size=(6, 4), batch_size=64)


def test_each_process_draws_its_share_and_the_first_waits_for_the_others(tmp_path):
    context = multiprocessing.get_context("fork")
    path = tmp_path / "samples"
    others = [context.Process(target=drawn, args=(path, Artist(), 2, rank, 3)) for rank in (1, 2)]
    for other in others:
        other.start()
    first = Artist()
    samples = drawn(path, first, 2, 0, 3)
    np.testing.assert_array_equal(samples.images(range(NUM)), EXPECTED)
    assert first.seeds == [*SEEDS[0:2], *SEEDS[6:8]]
    for other in others:
        other.join(timeout=60)
        assert other.exitcode == 0
    assert path.read_bytes() == drawn(tmp_path / "alone", Artist(), 2).path.read_bytes()


def test_only_the_first_process_shows_its_progress(tmp_path, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr("darkroom.evaluation.drawn.progress", lambda items, desc, **rest: seen.append(desc) or progress(items, desc=desc))
    drawn(tmp_path / "samples", Artist(), 4, 1, 2)
    assert seen == []
    drawn(tmp_path / "samples", Artist(), 4, 0, 2)
    assert seen == ["draw samples"]


def test_fifty_thousand_samples_are_drawn_and_read_in_a_few_megabytes(tmp_path):
    """They take 147 MiB in the file."""
    program = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        import numpy as np
        from darkroom.evaluation.drawn import draw_samples
        prompts, seeds = ["a cat"] * 50_000, range(50_000)
        def draw(prompts, seeds):
            return np.full((len(prompts), 32, 32, 3), seeds[0] % 251, np.uint8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        samples = draw_samples(draw, prompts, seeds, Path(sys.argv[1]), size=(32, 32), batch_size=64)
        draw_samples(draw, prompts, seeds, Path(sys.argv[1]), size=(32, 32), batch_size=64)  # a resumed run reads them all
        total = sum(int(samples.images(range(start, start + 50))[0, 0, 0, 0]) for start in range(0, 50_000, 50))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, total)
    """)
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path / "samples")], capture_output=True, text=True, check=True)
    grown, total = map(int, run.stdout.split()[-2:])
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    assert grown * unit < 16 * 2**20
    assert total > 0
