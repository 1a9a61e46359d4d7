"""Soft labels: the class probabilities of a teacher that writes a rationale before it answers."""

import statistics
from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.rank_zero import _get_rank

from rbft.data.elicited import ElicitedClasses
from rbft.data.rationales import RationaleStore
from rbft.data.verified import verified_beside
from rbft.inputs import Inputs, Writer
from rbft.runtime.lock import Lock
from rbft.training.fsdp2 import wait_for_all
from rbft.verification import elicit


def name_classes(inputs: Inputs, teacher: Writer) -> None:
    """Has the teacher name the class behind each of its rationales about training clips.

    Args:
        inputs: What the experiment is made from.
        teacher: Whose rationales are written already.
    """
    store = inputs.rationale_store(writer=teacher)
    elicited, order = _elicited(inputs, store, teacher), _order(inputs)
    with Lock(store.path, "Rationale file"):
        wait_for_all(inputs.trainer, inputs.model)
        if not _get_rank():
            elicited.recover(order)
        wait_for_all(inputs.trainer, inputs.model)
        elicited.read()
        elicit(inputs, inputs.data, elicited, _lines(inputs, store), teacher)


def soft_labels(inputs: Inputs, teacher: Writer) -> dict[str, list[float]]:
    """The teacher's probability of each class, by the id of the training clip.

    Of several rationales about a clip, the mean. Clips that cannot be decoded have none.

    Args:
        inputs: What the experiment is made from.
        teacher: Whose classes `name_classes` has had named.
    """
    store = inputs.rationale_store(writer=teacher)
    elicited, found = _elicited(inputs, store, teacher), {}
    for line in _lines(inputs, store):
        if (shares := elicited.probabilities(line)) is not None:
            found.setdefault(line["id"], []).append(shares)
    return {
        name: [statistics.fmean(column) for column in zip(*own, strict=True)]
        for name, own in found.items()
    }


def _lines(inputs: Inputs, store: RationaleStore) -> list[Mapping[str, Any]]:
    train = {clip.id for clip in inputs.data.clips("train")}
    return [line for name, own in store.by_clip().items() if name in train for line in own]


def _elicited(inputs: Inputs, store: RationaleStore, teacher: Writer) -> ElicitedClasses:
    data = inputs.data
    beside = verified_beside(store.path, store.provenance, data, store.samples, teacher.stage)
    return beside.elicited


def _order(inputs: Inputs) -> list[str]:
    return [clip.id for clip in inputs.data.clips_to_describe()]
