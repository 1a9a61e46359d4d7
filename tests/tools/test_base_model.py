import torch

from tools.miniature_base.base_model import new_model


def test_new_model_is_small_and_seeded():
    model = new_model(0)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_700_000
    again = new_model(0)
    assert all(map(torch.equal, model.parameters(), again.parameters()))
