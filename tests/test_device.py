import pytest
import torch

from darkroom.device import best_device


@pytest.fixture
def accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.mark.usefixtures("accelerators")
def test_each_process_of_a_machine_has_an_accelerator_of_its_own(monkeypatch):
    assert best_device() == torch.device("cuda")
    for rank in (0, 3):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert best_device() == torch.device("cuda", rank)


def test_processes_without_accelerator_share_the_cpu(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert best_device() == torch.device("cpu")
