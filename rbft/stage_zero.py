"""Stage 0: the base model writes a rationale for every training clip, r_i = M_theta(v_i, P)."""

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from lightning.fabric.utilities.rank_zero import _get_rank

from rbft import endpoint
from rbft.build import Experiment
from rbft.callbacks.cut import cut_note
from rbft.card import Card
from rbft.clip import Clip
from rbft.data.base import VideoDataModule
from rbft.data.rationales import RationaleStore
from rbft.inputs import BACKBONE, Inputs, Writer
from rbft.passes import write_pass
from rbft.runtime.console import COLUMNS, print_rank_zero
from rbft.runtime.lock import Lock
from rbft.training.fsdp2 import wait_for_all
from rbft.verification import verify

SHOWN = 3  # rationales on the screen, when all are written
LINES = 8  # of each at most; `python -m rbft rationales` shows them whole


def check_prompts(names: Sequence[str], card: Card) -> None:
    """Refuses names that are no rationale prompts of the card, or that stand twice.

    Raises:
        ValueError: Naming those that there are.
    """
    allowed = [name for name in card.prompts if name != "label"]
    if not names or len(set(names)) < len(names) or not set(names) <= set(allowed):
        raise ValueError(
            f"--prompts [{', '.join(names)}] must name rationale prompts of the card "
            f"'{card.name}', each once; it has {', '.join(allowed)}."
        )


def group_by_missing_prompts(
    missing: Mapping[str, Sequence[str]], clips: Sequence[Clip]
) -> dict[tuple[str, ...], list[Clip]]:
    """The prompts that clips lack a rationale of, and the clips that lack just these.

    All is one pass, unless an earlier run has written more for one prompt than for another.

    Args:
        missing: Ids of the clips that lack a rationale, by the name of its prompt.
        clips: The clips to describe.
    """
    sets = {name: set(ids) for name, ids in missing.items()}
    found: dict[tuple[str, ...], list[Clip]] = {}
    for clip in clips:
        if lacking := tuple(name for name, ids in sets.items() if clip.id in ids):
            found.setdefault(lacking, []).append(clip)
    return found


def ask_endpoint(
    experiment: Experiment, data: VideoDataModule, prompts: Sequence[str] | None = None
) -> None:
    """Has the endpoint write the rationales that are missing; needs no backbone.

    Args:
        experiment: The settings, with an endpoint.
        data: The benchmark.
        prompts: Names of the prompts on the card that ask for them; None takes that of the
            experiment.

    Raises:
        ValueError: When all are asked for, if clips have none (their requests failed, or what was
            answered is no rationale); or see `rbft.endpoint.ClipAsker.ask`.
    """
    ids = [clip.id for clip in data.clips_to_describe()]
    wanted = ids if data.rationale_ratio else []
    problems = []
    for name, variant in prompt_variants(experiment, data, prompts).items():
        store = endpoint.rationale_store(experiment, variant)
        with Lock(store.path, "Rationale file"):
            store.recover(ids)  # of a run that was killed; the parts are this process's alone
            store.read()
            missing = store.missing(wanted)
            _say_reuse(store, wanted, missing)
            try:
                if missing:
                    problems += endpoint.ask_for_rationales(experiment, variant, store, missing)
            finally:
                store.recover(ids)
        longest = experiment.settings.model.max_new_tokens
        _show(store, missing, wanted, longest, f", {name}" if prompts else "")
    if problems:
        reasons = "\n".join(f"  {problem}" for problem in problems)
        raise ValueError(
            "Clips have no rationale, and training needs one of each:\n"
            f"{reasons}\n"
            "Start again to ask those that failed. For the others, ask in other words "
            "(data.rationale_prompt), ask another model, write a line of your own into the "
            "rationale file, or take the clips out of the split; what was written is kept."
        )


def write_rationales(
    inputs: Inputs, prompts: Sequence[str] | None = None, writer: Writer = BACKBONE
) -> None:
    """Has the rationales written that are missing: by the backbone, or by the endpoint.

    Where `data.rationale_selection` is verified, the class behind each is elicited as well.

    Args:
        inputs: What the experiment is made from.
        prompts: Names of the prompts on the card that ask for them; None takes that of the
            experiment.
        writer: Whose weights write, in the backbone's place.
    """
    data, model = inputs.data, inputs.model
    if inputs.experiment.endpoint is not None:
        if not _get_rank():
            ask_endpoint(inputs.experiment, data, prompts)
        wait_for_all(inputs.trainer, inputs.model)
        return
    variants = prompt_variants(inputs.experiment, data, prompts)
    stores = {name: inputs.rationale_store(variant, writer) for name, variant in variants.items()}
    clips = data.clips_to_describe()
    ids = [clip.id for clip in clips]
    wanted = ids if data.rationale_ratio or writer != BACKBONE else []
    with ExitStack() as owned:
        for store in stores.values():
            owned.enter_context(Lock(store.path, "Rationale file"))
            store.read()  # what another run may have written meanwhile
        missing = {name: store.missing(wanted) for name, store in stores.items()}
        for name, store in stores.items():
            _say_reuse(store, wanted, missing[name])
        for lacking, some in group_by_missing_prompts(missing, clips).items():
            cards = [variants[name].card for name in lacking]
            write_pass(inputs, [stores[name] for name in lacking], cards, some, writer=writer)
        wait_for_all(inputs.trainer, inputs.model)  # before the first process joins what is read
        if not _get_rank():
            for store in stores.values():
                store.recover(ids)
        for name, store in stores.items():
            verify(inputs, variants[name], store, writer)
    if _get_rank():
        return
    for name, store in stores.items():
        which = f", {name}" if len(stores) > 1 else ""
        _show(store, missing[name], wanted, model.max_new_tokens, which)


def _show(
    store: RationaleStore, missing: Sequence[str], wanted: Sequence[str], longest: int, which: str
) -> None:
    """Shows some of what was written, and says how many are cut off."""
    texts = store.texts()
    for clip in [clip for clip in missing if clip in texts][:SHOWN]:
        said = f"{clip}{which}: {texts[clip]}"
        lines = textwrap.wrap(
            said, COLUMNS - 1, subsequent_indent="  ", max_lines=LINES, placeholder=" ..."
        )
        print_rank_zero("\n".join(lines))
    known = [clip for clip in wanted if clip in texts]
    cut = len(store.cut().intersection(known))
    if note := cut_note(cut, len(known), longest):
        print_rank_zero(f"Stage 0{which}: {note}")


def prompt_variants(
    experiment: Experiment, data: VideoDataModule, prompts: Sequence[str] | None
) -> dict[str, VideoDataModule]:
    """The benchmark with each of several prompts as the one that asks for rationales.

    Args:
        experiment: The settings.
        data: The benchmark.
        prompts: Names of prompts on the card; None takes that of the experiment.

    Returns:
        The benchmarks by the prompts' names.

    Raises:
        ValueError: If one is no rationale prompt of the card, or `data.rationale_file` would be the
            file of several.
    """
    if prompts is None:
        return {data.rationale_prompt: data}
    check_prompts(prompts, data.card)
    if data.rationale_file is not None and len(prompts) > 1:
        raise ValueError(
            f"--prompts names {len(prompts)} prompts, but data.rationale_file "
            f"({data.rationale_file}) is the file of one. Set it to null, or name one prompt."
        )
    return {
        name: experiment.changed(data__init_args__rationale_prompt=name).data() for name in prompts
    }


def _say_reuse(store: RationaleStore, wanted: list[str], missing: list[str]) -> None:
    """Says how many rationales are there already, and whether what they are about is known."""
    there = len(wanted) - len(missing)
    each = f" clips with {store.samples} rationales each" if store.samples > 1 else " rationales"
    if there:
        print_rank_zero(f"Stage 0: {there} of {len(wanted)}{each} reused from {store.path}")
    if silent := [name for name in wanted if name in set(store.unproven)]:
        print_rank_zero(
            f"{len(silent)} of them do not say which video they are about and are taken by the "
            f"clip's id (first: {silent[0]})."
        )
    if missing:
        print_rank_zero(f"Stage 0: {len(missing)}{each} to write into {store.path}")
