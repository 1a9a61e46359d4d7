import dataclasses
import sys

import pytest
import torch

from tools.miniature_base import pretrain
from tools.miniature_base.student import Student

SHORT = tuple(
    dataclasses.replace(phase, steps=2, batch_size=4 if phase.shares else 8)
    for phase in pretrain.PHASES
)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_two_steps_of_each_phase_are_reproducible():
    first, again = (pretrain.pretrain(0, SHORT).state_dict() for _ in range(2))
    start = Student(0).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    unmoved = [name for name in first if torch.equal(first[name], start[name])]
    assert unmoved == []


def test_muon_trains_the_matrices_and_adamw_the_rest():
    student = Student(0)
    muon, adamw = pretrain.optimizers(student, pretrain.PHASES[1])
    visual, language = (len(group["params"]) for group in muon.param_groups)
    assert (visual, language) == (4 * 5 + 2, 4 * 7)
    assert [group["lr"] for group in muon.param_groups] == [0.0075, 0.015]
    everything = sum(1 for _ in student.parameters())
    assert visual + language + len(adamw.param_groups[0]["params"]) == everything


def test_existing_output_is_an_error_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pretrain", "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        pretrain.main()
    assert f"--output {tmp_path} exists already; name a new folder." in capsys.readouterr().err
