import pytest

from rbft.runs.tags import name_of, tag_of


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("train/loss", "loss/train"),
        ("val/loss", "loss/val"),
        ("train/loss_class", "loss/train_class"),
        ("val/accuracy", "accuracy/val"),
        ("test/accuracy", "accuracy/test"),
        ("epoch", "train/epoch"),
        ("train/grad_norm", "train/grad_norm"),
        ("test/f1/accuracy", "test/f1/accuracy"),  # a class of that name
        ("test/f1/macro", "test/f1/macro"),
        ("lr/language", "lr/language"),
    ],
)
def test_tags_and_names(name: str, tag: str) -> None:
    assert tag_of(name) == tag
    assert name_of(tag) == name
