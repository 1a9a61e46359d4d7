"""Verifying rationales: which lead to the right class, and a second try for the others."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.fabric.utilities.rank_zero import _get_rank

from rbft.data.base import VideoDataModule
from rbft.data.elicited import ElicitedClasses
from rbft.data.rationales import RationaleStore
from rbft.data.verified import Verified
from rbft.inputs import BACKBONE, Inputs, Writer
from rbft.passes import elicit_pass, write_pass
from rbft.rationales.selection_report import SelectionReport
from rbft.runtime.console import print_rank_zero
from rbft.training.fsdp2 import wait_for_all


def verify(
    inputs: Inputs, data: VideoDataModule, store: RationaleStore, writer: Writer = BACKBONE
) -> None:
    """Elicits what is missing for the selection `verified`; does nothing under other selections.

    The model that wrote the rationales names the class behind each one of a training clip. With
    the fallback `hint` it then writes about the clips that it was wrong about, told the class, and
    names the class behind these as well, without being told. Everything is on disk as it comes, and
    nothing is asked twice.

    Args:
        inputs: What the experiment is made from.
        data: The benchmark, with the prompt that asked for the rationales.
        store: The rationale file, complete. Its owner calls this, on all processes.
        writer: Who wrote them, and names the classes.
    """
    selector = store.selector
    if not isinstance(selector, Verified) or not data.rationale_ratio:
        return
    _wait_and_read(inputs, store, selector)
    elicit(inputs, data, selector.elicited, selector.to_verify(store.by_clip()), writer)
    if selector.hinted is not None:
        _wait_and_read(inputs, store, selector)
        lacking = set(selector.hinted.missing(selector.lacking(store.by_clip())))
        if lacking:
            each = f", {store.samples} each" if store.samples > 1 else ""
            print_rank_zero(
                f"Stage 0: {len(lacking)} clips have no rationale that leads to their class; "
                f"a second try{each}, label-conditioned, goes into {selector.hinted.path}"
            )
            clips = [clip for clip in data.clips("train") if clip.id in lacking]
            write_pass(inputs, [selector.hinted], [data.card], clips, data.rationale_hint, writer)
        _wait_and_read(inputs, store, selector)
        wrong = set(selector.lacking(store.by_clip()))
        again = {name: one for name, one in selector.hinted.by_clip().items() if name in wrong}
        elicit(inputs, data, selector.elicited, selector.to_verify(again), writer)
    _wait_and_read(inputs, store, selector)
    if report := selection_report(data, store):
        print_rank_zero(f"data.rationale_selection ({data.rationale_prompt}): {report}")


def selection_report(data: VideoDataModule, store: RationaleStore) -> SelectionReport | None:
    """What `verified` selected so far; None under other selections, or where nothing is known.

    Args:
        data: The benchmark.
        store: The rationale file.
    """
    selector = store.selector
    if not isinstance(selector, Verified) or not store.chosen.ways:
        return None
    return selector.report(store.by_clip(), store.chosen.ways, data.card.classes)


def elicit(
    inputs: Inputs,
    data: VideoDataModule,
    elicited: ElicitedClasses,
    records: Iterable[Mapping[str, Any]],
    writer: Writer = BACKBONE,
) -> None:
    """Has the class behind rationales named, as far as it is not known yet.

    Args:
        inputs: What the experiment is made from.
        data: The benchmark, with the prompt that asked for the rationales.
        elicited: Where the classes go.
        records: The lines of the rationales.
        writer: Whose weights name them.
    """
    records = list(records)
    missing = elicited.missing(records)
    if known := sum(map(elicited.knows, records)):
        print_rank_zero(
            f"Stage 0: the classes behind {known} of {len(records)} rationales reused from "
            f"{elicited.path}"
        )
    if missing:
        print_rank_zero(f"Stage 0: {len(missing)} rationales to verify into {elicited.path}")
        elicit_pass(inputs, data, elicited, missing, writer.weights)


def _wait_and_read(inputs: Inputs, store: RationaleStore, selector: Verified) -> None:
    """Has the first process join what killed runs have left, while no other reads."""
    ids = [clip.id for clip in inputs.data.clips_to_describe()]
    wait_for_all(inputs.trainer, inputs.model)
    if not _get_rank():
        for file in (store, selector.elicited, selector.hinted):
            if file is not None:
                file.recover(ids)
    wait_for_all(inputs.trainer, inputs.model)
    for file in (selector.elicited, selector.hinted, store):
        if file is not None:
            file.read()
