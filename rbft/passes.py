"""One pass of the backbone over clips: it writes about them, or names the class behind texts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rbft.backbone.loading import short_name
from rbft.build import build
from rbft.card import Card
from rbft.clip import Clip
from rbft.data.base import VideoDataModule
from rbft.data.elicited import ElicitedClasses
from rbft.data.rationales import RationaleStore
from rbft.eliciting_module import ElicitedWriter, ElicitingModule
from rbft.inputs import BACKBONE, Inputs, Writer
from rbft.module import RBFTModule
from rbft.rationale_module import RationaleModule, RationaleWriter


def write_pass(
    inputs: Inputs,
    stores: Sequence[RationaleStore],
    cards: Sequence[Card],
    clips: Sequence[Clip],
    hint: str = "",
    writer: Writer = BACKBONE,
) -> None:
    """Has rationales written; each clip is read once for all prompts.

    Args:
        inputs: What the experiment is made from.
        stores: Where they go, a file for each card.
        cards: The task card with each of the prompts.
        clips: The clips, each of which lacks rationales in all of the stores.
        hint: What the writer is told about a clip's label; empty tells nothing.
        writer: Who writes, and what it is asked.
    """

    def module(model: RBFTModule) -> RationaleModule:
        return RationaleModule(
            model.loader,
            cards,
            model.max_new_tokens,
            packing=model.packing,
            sampling=model.rationale_sampling,
            abouts=[store.clips for store in stores],
            stage=replace(writer.stage, hint=hint),
        )

    name = short_name(inputs.experiment.settings.model.backbone)
    title = "Stage 0 (second try, with the label)" if hint else "Stage 0 (writing rationales)"
    build(
        inputs.experiment,
        "rationale",
        writer.weights,
        title,
        [RationaleWriter(stores, name)],
        feed={"predict_clips": clips},
        module=module,
        pace=inputs.pace,
    ).predict()


def elicit_pass(
    inputs: Inputs,
    data: VideoDataModule,
    elicited: ElicitedClasses,
    records: Sequence[Mapping[str, Any]],
    weights: Path | None = None,
) -> None:
    """Has the backbone name the class behind rationales.

    Args:
        inputs: What the experiment is made from.
        data: The benchmark, with the prompt that asked for the rationales.
        elicited: Where the classes go.
        records: The lines of the rationales.
        weights: Weights folder of who names them; None for the backbone.
    """
    of_clip: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        of_clip.setdefault(record["id"], []).append(record)

    def module(model: RBFTModule) -> ElicitingModule:
        return ElicitingModule(model.loader, data.card, of_clip, packing=model.packing)

    build(
        inputs.experiment,
        "rationale_class",
        weights,
        "Stage 0 (verifying rationales)",
        [ElicitedWriter(elicited, of_clip)],
        feed={"predict_clips": [clip for clip in data.clips("train") if clip.id in of_clip]},
        module=module,
        pace=inputs.pace,
    ).predict()
