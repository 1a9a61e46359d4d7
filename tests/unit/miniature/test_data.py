import pytest

from rbft.card import Card
from rbft.miniature.data import Miniature
from rbft.miniature.language import (
    ATMOSPHERE_PROMPT,
    LABEL_PROMPT,
    PERSONAS,
    RATIONALE_PROMPT,
    SHORT_PROMPT,
    WORDS,
)

SETTINGS = {
    "fps": 1.0,
    "max_pixels": 84 * 84,
    "min_pixels": 56 * 56,
    "min_frames": 4,
    "max_frames": 64,
    "global_batch_size": 16,
    "rationale_ratio": 1.0,
}


def test_card_asks_what_the_base_model_was_taught():
    assert Miniature.card_file is not None
    card = Card.load(Miniature.card_file)
    assert card.classes == ("normal", "abnormal")
    assert card.persona in PERSONAS
    asked = {name: card.prompt(name) for name in card.prompts}
    assert asked == {
        "label": LABEL_PROMPT,
        "rationale": RATIONALE_PROMPT.format(persona=card.persona),
        "less": SHORT_PROMPT,
        "least": ATMOSPHERE_PROMPT,
    }
    assert set(" ".join([*asked.values(), *card.words.values()]).split()) <= set(WORDS)


def test_clips_are_made_on_first_use(tmp_path):
    folder = tmp_path / "clips"
    data = Miniature(train_size=3, test_size=2, clip_seed=4, clips_folder=folder, **SETTINGS)
    assert not folder.exists()
    clips = data.read()
    assert [clip.split for clip in clips] == ["train"] * 3 + ["test"] * 2
    assert all(clip.path.parent == folder and clip.path.stat().st_size > 1000 for clip in clips)
    assert {clip.label for clip in clips} <= {0, 1}
    assert all(clip.reference and clip.reference.endswith(" .") for clip in clips)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_size": 0}, r"data.train_size \(0\) must be 1 or more."),
        ({"val_size": -1}, r"data.val_size \(-1\) must be 0 or more."),
        ({"test_size": 0}, r"data.test_size \(0\) must be 1 or more."),
        ({"clip_seed": -2}, r"data.clip_seed \(-2\) must be from 0 to 4294967295."),
    ],
)
def test_impossible_sizes_are_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        Miniature(**wrong, **SETTINGS)


def test_card_of_other_classes_is_an_error(tmp_path):
    path = tmp_path / "card.yaml"
    Card("cats", "", {"cat": "cat", "dog": "dog"}, {"label": "?", "rationale": "!"}).save(path)
    message = "Card 'cats' has the classes cat, dog; the clips of Miniature are normal or abnormal."
    with pytest.raises(ValueError, match=message):
        Miniature(card=path, **SETTINGS)
