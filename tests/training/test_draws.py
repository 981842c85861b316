import torch

from darkroom.training.draws import normal, positions_of_step, shuffled, uniform


def test_processes_and_micro_steps_cover_a_step_once():
    parts = [
        position
        for process in range(2)
        for positions in positions_of_step(3, batch_size=12, gradient_accumulation=3, num_processes=2, process=process)
        for position in positions
    ]
    assert sorted(parts) == list(range(36, 48))


def test_every_epoch_is_a_permutation_and_differs_from_the_last():
    first, second = (shuffled(range(start, start + 10), num_samples=10, seed=0) for start in (0, 10))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_order_depends_on_seed():
    assert shuffled(range(20), num_samples=20, seed=0) != shuffled(range(20), num_samples=20, seed=1)


def test_a_sample_draws_the_same_in_any_batch():
    whole = normal((4, 8, 8), seed=1, stream="noise", positions=range(6))
    torch.testing.assert_close(whole[4:], normal((4, 8, 8), seed=1, stream="noise", positions=[4, 5]), rtol=0, atol=0)


def test_streams_positions_and_seeds_are_independent():
    draws = [
        normal((1000,), seed=seed, stream=stream, positions=[position])[0]
        for seed, stream, position in [(0, "noise", 0), (0, "noise", 1), (0, "posterior", 0), (1, "noise", 0)]
    ]
    correlation = torch.corrcoef(torch.stack(draws))
    assert (correlation - torch.eye(4)).abs().max() < 0.15  # 4.7 standard errors


def test_normal_noise_has_unit_variance_and_uniform_draws_fill_the_interval():
    noise = normal((16,), seed=0, stream="noise", positions=range(2000))
    assert abs(float(noise.mean())) < 0.03
    assert abs(float(noise.std()) - 1) < 0.03
    numbers = uniform(seed=0, stream="t", positions=range(2000))
    torch.testing.assert_close(torch.histc(numbers, 4, 0, 1) / 2000, torch.full((4,), 0.25), rtol=0, atol=0.05)
