"""Maps, scores and masked scores of a clip, against eager attention and plain forwards."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from transformers import AutoModelForImageTextToText

from rbft.attention.causal import CausalSettings, grey_out, random_cells, top_cells
from rbft.attention.module import AttentionModule, ClipMap, MapSettings, MapWriter, redraw
from rbft.attention.prompts import generic_prompt, shuffled_prompt
from rbft.attention.records import Records
from rbft.clip import Clip
from rbft.data.base import Feed
from rbft.data.dataset import Example
from rbft.data.sampler import SampleSlot
from rbft.stages import LABEL, Stage
from rbft.video.sampling import Video
from tests.examples import CARD, Damaged, Yard, collator, module, prompt_of, trainer

SETTINGS = MapSettings(layers="all", generic="Describe it.", causal=CausalSettings(0.3, 2))


def made_module(folder: Path, settings: MapSettings = SETTINGS, **given: Any) -> AttentionModule:
    return AttentionModule(module(folder).loader, CARD, LABEL, settings, **given)


class Outputs(Callback):
    """What the module has said of each clip."""

    def __init__(self) -> None:
        self.found: list[list[ClipMap]] = []

    def on_predict_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.found.append(outputs)


def read_maps(
    tmp_path: Path, made: AttentionModule, count: int = 2, callbacks: Sequence[Any] = ()
) -> tuple[Yard, list[list[ClipMap]]]:
    data = Yard(tmp_path / "card.yaml", {"test": count}, eval_batch_size=1)
    feed = Feed(made.collators(), predict_clips=data.clips("test"))
    outputs = Outputs()
    trainer(tmp_path, callbacks=[outputs, *callbacks]).predict(
        made, datamodule=data.with_feed(feed), return_predictions=False
    )
    return data, outputs.found


class Plain:
    """A backbone with eager attention, asked about one clip at a time, without a KV cache."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(
            folder, attn_implementation="eager"
        )
        self.make = collator(folder, packing=True)

    @torch.no_grad()
    def ask(self, clip: Clip, video: Video, stage: Stage) -> tuple[np.ndarray, Tensor]:
        """The map over all layers, and log-probabilities of the class answers."""
        batch = replace(self.make, prompt_stage=stage)([Example(clip, video, None, SampleSlot(0))])
        prompt = prompt_of(batch)
        ids, at = prompt.input_ids, prompt.position_ids
        last, out, scores = ids.shape[1] - 1, None, []
        for answer in self.make.class_answers(LABEL):
            whole = torch.cat([ids, torch.tensor([answer])], dim=1)
            more = at[..., -1:] + torch.arange(1, len(answer) + 1)
            out = self.model(
                input_ids=whole,
                attention_mask=torch.ones_like(whole),
                position_ids=torch.cat([at, more], dim=2),
                use_cache=False,
                output_attentions=True,
                **batch.video,
            )
            log_p = out.logits[0].log_softmax(-1)
            scores.append(sum(log_p[last + n, token] for n, token in enumerate(answer)))
        assert out is not None
        row = torch.stack([layer[0, :, last, : last + 1].mean(0) for layer in out.attentions])
        video_row = row.mean(0)[ids[0] == self.model.config.video_token_id]
        pairs, rows, columns = batch.video["video_grid_thw"][0].tolist()
        values = (video_row / video_row.sum()).view(pairs, rows // 2, columns // 2)
        return values.numpy(), torch.stack(scores)


def test_maps_and_drops_of_two_clips(backbone: Path, tmp_path: Path) -> None:
    data, found = read_maps(tmp_path, made_module(backbone, shuffled=True))
    plain = Plain(backbone)
    clips = sorted(data.clips("test"), key=data.files.patches, reverse=True)
    assert len(found) == len(clips) == 2
    for clip, (own, shuffled) in zip(clips, found, strict=True):
        video = data.reader.decode(clip)
        for one, stage in ((own, LABEL), (shuffled, shuffled_prompt(LABEL, 0))):
            expected, _ = plain.ask(clip, video, stage)
            np.testing.assert_allclose(one.map.values, expected, rtol=2e-5)
            # Whatever the map is of, the question itself is asked of what was masked.
            _, scores = plain.ask(clip, video, LABEL)
            torch.testing.assert_close(one.scores, scores, atol=1e-4, rtol=0)
            label = clip.label
            assert label is not None

            def odds(shown: Video, clip: Clip = clip, label: int = label) -> float:
                own, other = (
                    float(plain.ask(clip, shown, LABEL)[1][n]) for n in (label, 1 - label)
                )
                return own - other

            count = round(0.3 * expected.size)
            top = odds(grey_out(video, top_cells(one.map.values, count)))
            cells = random_cells(expected.shape, count, clip.id, CausalSettings(0.3, 2))
            drawn = np.mean([odds(grey_out(video, which)) for which in cells])
            assert one.causal["drop_top"] == pytest.approx(odds(video) - top, abs=2e-4)
            assert one.causal["drop_random"] == pytest.approx(odds(video) - drawn, abs=2e-4)
            assert one.causal["drop"] == pytest.approx(drawn - top, abs=4e-4)


def test_relative_maps_are_divided_by_those_of_the_generic_prompt(
    qwen: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, kind="relative", causal=None)
    data, ((own,),) = read_maps(tmp_path, made_module(qwen, settings), 1)
    (clip,), plain = data.clips("test"), Plain(qwen)
    asked, _ = plain.ask(clip, data.reader.decode(clip), LABEL)
    generic, _ = plain.ask(clip, data.reader.decode(clip), generic_prompt(LABEL, "Describe it."))
    expected = asked / generic
    np.testing.assert_allclose(own.map.values, expected / expected.sum(), rtol=4e-5)
    assert own.causal == {}


def test_rollout_goes_through_all_layers(qwen: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, kind="rollout", layers=(1,), causal=None)
    _, ((rolled,),) = read_maps(tmp_path, made_module(qwen, settings), 1)
    _, ((mean,),) = read_maps(tmp_path, made_module(qwen, replace(settings, kind="mean")), 1)
    assert rolled.map.values.shape == mean.map.values.shape
    assert abs(rolled.map.values - mean.map.values).max() > 1e-5


def test_redrawn_weights_are_the_language_models_alone(qwen: Path) -> None:
    before, made = module(qwen), module(qwen)
    redraw(made.backbone, made.family, seed=3)
    old, new = (dict(one.backbone.named_parameters()) for one in (before, made))
    for name, parameter in old.items():
        assert torch.equal(parameter, new[name]) is (made.family.part(name) != "language"), name
    drawn = new["model.language_model.layers.0.mlp.gate_proj.weight"].detach()
    assert float(drawn.std()) == pytest.approx(0.02, rel=0.05)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.001)
    assert (new["model.language_model.norm.weight"] == 1).all()
    assert (new["model.language_model.layers.0.self_attn.q_proj.bias"] == 0).all()
    again, other = module(qwen), module(qwen)
    redraw(again.backbone, again.family, seed=3)
    redraw(other.backbone, other.family, seed=4)
    name = "model.language_model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(again.backbone.get_parameter(name), new[name])
    assert not torch.equal(other.backbone.get_parameter(name), new[name])


def test_a_control_reads_the_maps_of_redrawn_weights(qwen: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, causal=None)
    _, ((own,),) = read_maps(tmp_path, made_module(qwen, settings), 1)
    _, ((control,),) = read_maps(tmp_path, made_module(qwen, settings, redrawn=True), 1)
    assert abs(own.map.values - control.map.values).max() > 1e-4


def test_records_hold_what_was_read(qwen: Path, tmp_path: Path) -> None:
    both = [Records.of(tmp_path, name, {}) for name in ("ours", "ours shuffled")]
    abouts = {f"test_{n}": {"video": str(n)} for n in range(2)}
    writer = MapWriter(both, abouts, CARD.classes)
    data, found = read_maps(tmp_path, made_module(qwen, shuffled=True), 2, [writer])
    clips = sorted(data.clips("test"), key=data.files.patches, reverse=True)
    for clip, maps in zip(clips, found, strict=True):
        for records, one in zip(both, maps, strict=True):
            record = records.read(clip.id, abouts[clip.id])
            assert record is not None
            np.testing.assert_allclose(record["map"], one.map.values, rtol=1e-6)
            assert record["prediction"] == CARD.classes[int(one.scores.argmax())]
            shares = dict(zip(CARD.classes, one.scores.softmax(-1).tolist(), strict=True))
            assert record["probabilities"] == pytest.approx(shares)
            assert record["causal"] == pytest.approx(one.causal)
            assert record["video_share"] == pytest.approx(one.map.video_share)
            assert record["frames"] == data.reader.decode(clip).indices
            assert record["fps"] == 10.0


def test_a_clip_that_cannot_be_decoded_leaves_no_record(qwen: Path, tmp_path: Path) -> None:
    data = Damaged(tmp_path / "card.yaml", {"test": 1}, damaged=["test_0"], eval_batch_size=1)
    made, records = made_module(qwen), Records.of(tmp_path, "ours", {})
    writer = MapWriter([records], {"test_0": {}}, CARD.classes)
    feed = Feed(made.collators(), predict_clips=data.clips("test"))
    found = trainer(tmp_path, callbacks=[writer]).predict(made, datamodule=data.with_feed(feed))
    assert found == [[]]
    assert records.read("test_0", {}) is None


def test_scores_that_are_not_finite_name_the_clip(qwen: Path, tmp_path: Path) -> None:
    made = made_module(qwen)
    made.configure_model()
    made.backbone.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"The model's scores are not finite for the clip test_0:"):
        read_maps(tmp_path, made, 1)
