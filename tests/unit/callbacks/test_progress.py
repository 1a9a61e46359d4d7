from dataclasses import replace
from pathlib import Path

import pytest

from rbft.callbacks.progress import StepProgressBar
from rbft.module import RBFTModule
from tests.examples import CARD, MODULE_SETTINGS, Yard, fed, trainer


def test_every_bar_names_its_step_and_counts(
    qwen: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    yard = Yard(tmp_path / "card.yaml", {"train": 2, "val": 2, "test": 2}, eval_batch_size=1)
    yard.feed = replace(yard.feed, predict_clips=yard.clips("test"))
    bar, made = StepProgressBar("Stage II (labels)"), []
    init = bar.init_train_tqdm
    monkeypatch.setattr(bar, "init_train_tqdm", lambda: made.append(init()) or made[-1])
    run = trainer(tmp_path, callbacks=[bar], enable_progress_bar=True, max_epochs=2)
    model = RBFTModule(str(qwen), CARD, stage="label", **MODULE_SETTINGS)

    def shown() -> str:
        captured = capfd.readouterr()
        return captured.out + captured.err

    run.fit(model, fed(yard, model))
    text = shown()
    assert "Stage II (labels), epoch 1/2: 100%" in text
    assert "Stage II (labels), epoch 2/2: 100%" in text
    # Every epoch's bar stays on the screen; the one from before the first does not.
    assert [one.leave for one in made] == [False, True, True]
    assert "Stage II (labels), validating" in text
    assert "v_num" not in text
    run.test(model, fed(yard, model), verbose=False)
    text = shown()
    assert "Stage II (labels): 100%" in text
    assert "2/2" in text
    # Lightning's own name may flash up before the first batch.
    assert "DataLoader" not in text.split("0/2", 1)[1]
    run.predict(model, datamodule=fed(yard, model), return_predictions=False)
    text = shown()
    assert "Stage II (labels): 100%" in text
    assert "DataLoader" not in text.split("0/2", 1)[1]
