"""`rationales`: what was written, on one page, and what is to be said about it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from rbft.backbone.loading import short_name
from rbft.build import Experiment
from rbft.clip import Clip
from rbft.data.base import VideoDataModule
from rbft.data.rationales import RationaleStore
from rbft.inputs import Inputs, check_inputs
from rbft.rationales.filters import FilterName
from rbft.rationales.page import PageClip, PageRationale, film_strip, write_page
from rbft.rationales.quality import QualityReport, QualityRules, apply_rules
from rbft.rationales.sample import Sample, samples_of
from rbft.rationales.selection_report import told_note
from rbft.rationales.text_check import check_texts
from rbft.runs.folder import TOLD
from rbft.runtime.console import print_rank_zero
from rbft.runtime.progress import track
from rbft.stage_zero import prompt_variants
from rbft.verification import selection_report
from rbft.video.sampling import VideoError

HUMAN = "human reference"


@dataclass(frozen=True)
class Written:
    """The rationale file of a prompt, read.

    Attributes:
        store: The file.
        clips: The clips that it may be about.
        samples: Its rationales that training takes, in the order of the clips.
        writers: Who wrote the rationale of each clip.
        others: All other rationales of clips that have theirs.
    """

    store: RationaleStore
    clips: tuple[Clip, ...]
    samples: tuple[Sample, ...]
    writers: Mapping[str, str]
    others: tuple[Sample, ...] = ()

    def of_split(self, split: str) -> list[Sample]:
        """The rationales of one split's clips."""
        ids = {clip.id for clip in self.clips if clip.split == split}
        return [sample for sample in self.samples if sample.clip in ids]

    def __str__(self) -> str:
        ids, store = [clip.id for clip in self.clips], self.store
        missing, lost = len(store.missing(ids)), len(store.undecodable() & {*ids})
        there = len({sample.clip for sample in (*self.samples, *self.others)})
        told = sum(sample.label_conditioned for sample in self.samples)
        dropped, unknown = len(store.dropped() & {*ids}), len(store.undecided(ids))
        parts = [f"{there} of {len(ids)} clips have a rationale"]
        parts += [f"{told} are label-conditioned"] if told else []
        parts += [f"{dropped} have none that leads to their class"] if dropped else []
        parts += [f"{unknown} are not verified yet"] if unknown else []
        parts += [f"{len(store.cut() & {*ids})} were cut off"] if store.cut() else []
        parts += [f"{lost} could not be decoded"] if lost else []
        parts += [f"{missing} are missing"] if missing else []
        return f"{store.path}: {', '.join(parts)}."


def read_written(inputs: Inputs, prompts: Sequence[str] | None) -> dict[str, Written]:
    """The rationale file of each prompt; no weights are loaded.

    Args:
        inputs: What the experiment is made from.
        prompts: Names of prompts on the card; None takes that of the experiment.

    Returns:
        What stands in them, by the prompt's name.

    Raises:
        ValueError: If a file is damaged or was made from something else, or all are empty.
    """
    own = short_name(inputs.experiment.settings.model.backbone)
    found = {}
    for name, data in prompt_variants(inputs.experiment, inputs.data, prompts).items():
        store, clips = inputs.rationale_store(data), data.clips_to_describe()
        labels = {clip.id: clip.label for clip in clips}
        records = [store.records[clip.id] for clip in clips if clip.id in store.records]
        taken = {clip: one.get("sample", 0) for clip, one in store.records.items()}
        told = {clip for clip, one in store.records.items() if one.get(TOLD)}  # in another file
        others = [
            line
            for clip, lines in store.by_clip().items()
            for line in lines
            if clip in labels
            and (clip in told or clip not in taken or line.get("sample", 0) != taken[clip])
        ]
        writers = {one["id"]: one.get("model") or one["source"] for one in [*records, *others]}
        writers = {clip: own if who == "self" else who for clip, who in writers.items()}
        samples, rest = samples_of(records, labels), samples_of(others, labels)
        found[name] = Written(store, tuple(clips), tuple(samples), writers, tuple(rest))
    if not any((*one.samples, *one.others) for one in found.values()):
        files = ", ".join(str(one.store.path) for one in found.values())
        raise ValueError(
            f"No rationale is written yet: {files} holds none of the benchmark's clips. Run "
            "python -m rbft rationalize with the same settings."
        )
    return found


def rationales(
    experiment: Experiment, prompts: list[str] | None = None, output: Path | None = None
) -> None:
    """Show what was written: counts, rules, a check of the texts, and a page to read them on.

    Loads no weights. Rules are those of data.rationale_rules.

    Args:
        experiment: The settings.
        prompts: Rationale prompts of the card, "[rationale, less]": their rationales stand side by
            side. null takes the experiment's own.
        output: The HTML file; null writes <logs>/rationales/<rationale file's stem>.html.
    """
    inputs = check_inputs(experiment, weights=False)
    written = read_written(inputs, prompts)
    rules = inputs.data.rationale_rules or QualityRules()
    reports, texts = {}, []
    for name, one in written.items():
        print_rank_zero(f"{name}: {one}")
        reports[name], said = _report(one, rules, inputs.data)
        if (selected := selection_report(inputs.data, one.store)) is not None:
            said = f"data.rationale_selection: {selected}\n{said}"
        print_rank_zero(said)
        texts.append(f"{name}\n{one}\n{said}")
        print_rank_zero(check_sentence(one.of_split("train"), inputs.data))
    first = next(iter(written.values())).store.path
    folder = inputs.experiment.logs / "rationales"
    file = output or folder / f"{first.stem}.html"
    title = f"Rationales of {inputs.data.benchmark}"
    clips = _page_clips(inputs.data, written, reports)
    count = write_page(file, title, clips, inputs.card, "\n\n".join(texts))
    print_rank_zero(f"Wrote {count} clips to {file}; open it in a browser.")


def _report(
    written: Written, rules: QualityRules, data: VideoDataModule
) -> tuple[QualityReport, str]:
    """What the rules find in the training clips' rationales, and that in words.

    Where a class is left with none, `fit` refuses; the page shows the flags all the same.
    """
    samples = written.of_split("train")
    try:
        report = apply_rules(samples, rules, data.card)
    except ValueError as error:
        shown = replace(rules, only_flag=get_args(FilterName))
        report = apply_rules(samples, shown, data.card)
        return report, f"fit will refuse these rules: {error}\nFlags alone:\n{report}"
    return report, str(report)


def check_sentence(samples: Sequence[Sample], data: VideoDataModule) -> str:
    """How well the class is guessed from the texts alone, or why that was not tried."""
    if data.card.several is not None:
        return (
            "Whether the class can be guessed from the texts was not checked: a clip may have "
            f"several classes (the key several of card '{data.card.name}')."
        )
    labelled = [sample for sample in samples if sample.label is not None]
    told = sum(sample.label_conditioned for sample in labelled)
    note = f"\n{told_note(told)} They may know the class from there." if told else ""
    try:
        return f"{check_texts(labelled, data.card)}{note}"
    except ValueError as error:
        return f"Whether the class can be guessed from the texts was not checked: {error}"


def _page_clips(
    data: VideoDataModule, written: Mapping[str, Written], reports: Mapping[str, QualityReport]
) -> Iterator[PageClip]:
    """The clips as the page shows them; decodes their frames one by one."""
    flags = {name: report.by_sample for name, report in reports.items()}
    by_clip: dict[str, list[PageRationale]] = {}
    for name, one in written.items():
        taken = set(map(id, one.samples))
        for sample in (*one.samples, *one.others):
            learnt = id(sample) in taken
            found = flags[name].get((sample.clip, sample.number), ()) if learnt else ()
            shown = PageRationale(name, sample, one.writers[sample.clip], found, learnt)
            by_clip.setdefault(sample.clip, []).append(shown)
    lost = {clip: r for one in written.values() for clip, r in one.store.records.items()}
    classes = data.card.classes
    clips = data.clips_to_describe()
    for clip in track(clips, "Reading clips", len(clips), "clip"):
        texts = by_clip.get(clip.id, [])
        if clip.reference is not None:
            texts = [*texts, PageRationale(HUMAN, Sample(clip.id, clip.reference), "human")]
        pictures, note = (), ""
        try:
            video = data.reader.decode(clip)
        except VideoError as error:
            note = f"No pictures: {error}"
        else:
            frames = video.frames.permute(0, 2, 3, 1).numpy()
            start = clip.start or 0.0
            pictures = film_strip(frames, [at - start for at in video.seconds])
        if dropped := [name for name, one in written.items() if clip.id in one.store.dropped()]:
            names = f" ({', '.join(dropped)})" if len(written) > 1 else ""
            note = f"Not learnt{names}: none of its rationales leads to its class. {note}".rstrip()
        if any(one.store.chosen.ways.get(clip.id) == "first" for one in written.values()):
            note = f"Learnt although it leads to another class. {note}".rstrip()
        if not texts and not note and (why := lost.get(clip.id, {}).get("error")):
            note = str(why)
        label = None if clip.label is None else classes[clip.label]
        yield PageClip(clip.id, label, pictures, tuple(texts), note)
