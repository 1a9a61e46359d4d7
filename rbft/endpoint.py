"""A server in the backbone's place: it is asked about the same clips in the same words."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor

from rbft.analysis.intervals import for_results, score_intervals
from rbft.build import Experiment
from rbft.clip import Clip
from rbft.data.base import VideoDataModule
from rbft.data.content import about_clips, describe_clips
from rbft.data.rationales import CUT, STOPPED, UNDECODABLE, RationaleStore
from rbft.engines.budget import Spent
from rbft.engines.content import frames_digest
from rbft.engines.endpoint import EndpointEngine
from rbft.engines.request import Answer, Request, Sampling
from rbft.engines.settings import EndpointSettings
from rbft.inference.metrics import ClassificationMetrics, for_json
from rbft.inference.result_file import write_results
from rbft.inference.result_table import result_table
from rbft.inference.server_answer import NO_CLASS, AnsweredClass, answered_class, label_form
from rbft.runs.folder import read_json, versions
from rbft.runs.record import digest, scoring_settings
from rbft.runtime.console import print_rank_zero
from rbft.runtime.differences import flat
from rbft.runtime.lock import Lock
from rbft.runtime.progress import track
from rbft.stages import LABEL, STAGES, Stage
from rbft.video.frame_settings import determining
from rbft.video.sampling import Video, VideoError

NAMED = 3  # clips that a message names
NO_ENDPOINT = "Have a backbone classify (--endpoint null); an endpoint can write its rationales."
Item = TypeVar("Item")

log = logging.getLogger(__name__)


@dataclass
class Asked:
    """What a server said about clips.

    Attributes:
        answers: What became of each request, by clip id.
        lost: Why a clip cannot be decoded, by clip id; these were not asked about.
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)


class ClipAsker:
    """Asks an experiment's endpoint about clips, with rbft's own frames.

    What it costs at most is said before the first request. A run that was ended goes on from the
    replay store, and nothing that was answered is asked again.

    Args:
        experiment: The settings, with an endpoint.
        data: The benchmark.
    """

    def __init__(self, experiment: Experiment, data: VideoDataModule) -> None:
        self.experiment, self.data = experiment, data
        self.settings = endpoint_of(experiment)
        self.shown: dict[str, dict[str, Any]] = {}  # frames of each decoded clip, by id
        self.engine: EndpointEngine = self.settings.engine(experiment.logs)
        self.progress = experiment.settings.trainer.enable_progress_bar is not False

    def ask(
        self,
        clips: Sequence[Clip],
        stage: Stage,
        sampling: Sampling,
        what: str,
        take: Callable[[Answer], None] | None = None,
        lose: Callable[[str, str], None] | None = None,
    ) -> Asked:
        """Asks about clips what a stage asks.

        Args:
            clips: The clips; each is decoded once to know its frames by content, and once more if
                it is sent.
            stage: The stage whose prompt is put.
            sampling: How answers are decoded.
            what: What the clips are called in messages: "test clips".
            take: Is given each answer as it comes.
            lose: Is given id and error of each clip that cannot be decoded.

        Raises:
            ValueError: If the limits allow no request at all, or not all of them (what was answered
                is kept), if every request failed, or the videos have gone.
        """
        asked, broken = Asked(), list[ValueError]()
        digests: dict[str, str] = {}

        def video(clip: Clip) -> Video:
            try:
                found = self.data.reader.decode(clip)
            except VideoError as error:
                asked.lost[clip.id] = str(error)
                raise
            except ValueError as error:  # not of this clip alone: the videos have gone
                broken.append(error)
                raise
            digests.setdefault(clip.id, frames_digest(found))
            self.shown[clip.id] = found.shown
            return found

        card = self.data.card
        requests = [
            Request(clip.id, stage.prompt(card, clip), partial(video, clip), sampling=sampling)
            for clip in clips
        ]
        if not self.engine.offline:
            self._estimate(requests, what, broken)
        known = [replace(one, frames_digest=digests.get(one.id)) for one in requests]
        known = [one for one in known if one.id not in asked.lost]
        with closing(self.engine.answer(known)) as answers:
            for answer in self._bar(answers, f"{self.settings.model}: {what}", len(known)):
                if broken:
                    raise broken[0]
                if answer.id in asked.lost:  # offline, or decoded before and now no longer
                    continue
                asked.answers[answer.id] = answer
                if take is not None:
                    take(answer)
        for clip, error in asked.lost.items():
            if lose is not None:
                lose(clip, error)
        self._check(asked, what, len(clips))
        return asked

    def _estimate(self, requests: Sequence[Request], what: str, broken: list[ValueError]) -> None:
        """Says what the requests cost at most, and refuses where none of them can be afforded."""
        budget, images = self.engine.budget, self.settings.frames == "images"
        if images:
            _ = budget.image_tokens  # refuses limits that cannot be kept
        costs, total = [], Spent()
        for request in self._bar(requests, f"Looking at {what}", len(requests)):
            try:
                count, cost = self.engine.estimate([request])
            except ValueError:  # cannot be decoded or sent; `answer` says so
                if broken:
                    raise broken[0] from None
                continue
            if count:
                costs.append(cost)
                total += cost
        model = self.settings.model
        if not costs:
            print_rank_zero(f"{model}: every answer about {len(requests)} {what} is there already.")
            return
        print_rank_zero(
            f"{model}: {len(costs)} of {len(requests)} {what} to ask about, at most "
            f"{budget.describe_most(total, pictures=images)}, without repeats. Spent so far: "
            f"{budget.describe()}."
        )
        over = [budget.limits.passed_by(budget.spent + cost) for cost in costs]
        if all(over):
            raise ValueError(
                f"Nothing can be sent to {model}: any of the {len(costs)} requests could pass "
                f"endpoint.max_{over[0]}; spent are {budget.describe()}. Raise the limit, or set "
                "endpoint.offline to true to use what has been answered."
            )

    def _check(self, asked: Asked, what: str, count: int) -> None:
        """Refuses to go on where clips were not asked about.

        Raises:
            ValueError: Naming some of them.
        """
        model, answers = self.settings.model, asked.answers
        if left := [one for one in answers.values() if one.status == "not_sent"]:
            raise ValueError(
                f"{model} was not asked about {len(left)} of {count} {what} (first: {left[0].id}). "
                f"{left[0].error}"
            )
        failed = [one for one in answers.values() if one.status == "failed"]
        if failed and len(failed) == len(answers):
            raise ValueError(
                f"{model} gave no answer to any of {len(failed)} requests about {what} (first: "
                f"{failed[0].id}: {failed[0].error}). Look at endpoint.urls and at the server, and "
                "start again."
            )

    def _bar(self, items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
        yield from track(items, title, total, "request", shown=self.progress)


def endpoint_of(experiment: Experiment) -> EndpointSettings:
    """The endpoint of an experiment that has one."""
    assert experiment.endpoint is not None
    return experiment.endpoint


def score_with_endpoint(experiment: Experiment, split: str) -> None:
    """Scores a split with the endpoint; reads no backbone.

    Leaves the files that every scored split leaves, under `endpoint-<model>` in the run's folder.
    A clip without an answer that is a class counts as wrong; the figures of the others alone stand
    beside it, under `answered_only`, with the share of clips that they are about.

    Args:
        experiment: The settings, with an endpoint.
        split: "test" or "val".

    Raises:
        ValueError: If the split is empty, or see `ClipAsker.ask`.
    """
    data, settings = experiment.data(), endpoint_of(experiment)
    data.card.refuse_several("An endpoint that classifies", NO_ENDPOINT)
    data.check([])
    for note in data.notes:
        print_rank_zero(note)
    clips = data.clips(split)
    if not clips:
        raise ValueError(
            f"{type(data).__name__} has no {split} split. Set "
            "data.val_fraction to carve a validation split from the training clips."
        )
    sampling = label_sampling(experiment, data)
    made = {
        "endpoint": settings.facts(sampling),
        "frames": scoring_settings(flat(yaml.safe_load(experiment.as_yaml())))["frames"],
        "card": data.card.digest,
        "stage": LABEL.name,
        "prompt": data.card.prompt("label", "{text}"),
        "clips": digest(describe_clips(data)[split]),
    }
    with Lock(experiment.run.folder, "Run folder"):
        asked = ClipAsker(experiment, data).ask(clips, LABEL, sampling, f"{split} clips")
        place = f"endpoint-{settings.short_name}"
        file = _results_file(experiment, place, split, made)
        file.unlink(missing_ok=True)  # of answers that were there before
        facts = {"run": experiment.settings.name, "stage": place, "weights": settings.model}
        structured = settings.labels == "structured"
        rows = [_row(clip, data, asked, structured) for clip in clips]
        result = _write(file, data, split, rows, asked, {**facts, "made": made})
    print_rank_zero(_table(settings.model, split, result))
    print_rank_zero(f"Results and every answer: {file}")


def label_sampling(experiment: Experiment, data: VideoDataModule) -> Sampling:
    """How the answer to the label prompt is decoded, and which form it must have.

    Args:
        experiment: The settings, with an endpoint.
        data: The benchmark.
    """
    settings = endpoint_of(experiment)
    free = settings.sampling(experiment.settings.model.max_new_tokens, labels=True)
    if settings.labels == "free":
        return free
    return replace(free, response_format=label_form(data.card.words))


def _results_file(experiment: Experiment, place: str, split: str, made: dict[str, Any]) -> Path:
    """Where results go; those that were made otherwise are left alone."""
    own = experiment.run.results(place, split)
    if not own.exists() or read_json(own)["made"] == made:
        return own
    return experiment.run.results(place, split, digest(made)[:8])


def _write(
    file: Path,
    data: VideoDataModule,
    split: str,
    rows: Sequence[Mapping[str, Any]],
    asked: Asked,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes rows and figures.

    Returns:
        What stands in the file.
    """
    with_class = [row for row in rows if row["prediction"] is not None]
    every, answered, count = _metrics(data, rows), _metrics(data, with_class), len(with_class)
    unanswered: dict[str, list[str]] = {}
    for row in rows:
        if row["prediction"] is None:
            unanswered.setdefault(row.get("status", "undecodable"), []).append(row["id"])
    answers = [asked.answers[row["id"]] for row in rows if row["id"] in asked.answers]
    more = {
        "answered_only": {
            "n_scored": count,
            "coverage": count / len(rows),
            "classes": {
                name: sum(row["label"] == name for row in with_class) for name in data.card.classes
            },
            "metrics": for_json(answered.compute()) if count else None,
            "confusion": answered.confusion().tolist(),
            "intervals": for_results(
                score_intervals(answered.confusion().numpy(), data.card.classes)
            ),
        },
        "unanswered": unanswered,
        "by_logprobs": sum("probabilities" in row for row in rows),
        "models": sorted({answer.model for answer in answers if answer.model}),
        "shown": next((answer.shown for answer in answers if answer.shown), ""),
        "tokens": {
            "prompt": sum(answer.prompt_tokens or 0 for answer in answers),
            "completion": sum(answer.completion_tokens or 0 for answer in answers),
        },
    }
    return write_results(file, rows, data, split, facts, every.compute(), every.confusion(), more)


def _row(clip: Clip, data: VideoDataModule, asked: Asked, structured: bool) -> dict[str, Any]:
    """What stands about a clip in the predictions, see `rbft.callbacks.answer_rows.answer_row`."""
    classes = data.card.classes
    label = None if clip.label is None else classes[clip.label]
    row: dict[str, Any] = {"id": clip.id, "label": label, "prediction": None}
    if clip.id in asked.lost:
        return {**row, "error": asked.lost[clip.id]}
    answer = asked.answers[clip.id]
    found = answered_class(answer, data.card, structured=structured)
    row["prediction"] = found.prediction
    if found.probabilities is not None:
        row["probabilities"] = {k: float(f"{v:.7g}") for k, v in found.probabilities.items()}
    if data.card.values is not None:
        row["expected"] = _expected(found, data.card.values)
    if found.tied:
        row["tied"] = True
    if answer.text:
        row["text"] = answer.text
    if found.prediction is None:
        row["status"] = NO_CLASS if answer.ok else answer.status
    if reason := " ".join(filter(None, [answer.error, answer.refusal, found.problem])):
        row["reason"] = reason
    if answer.key:
        row["answer"] = answer.key  # in the replay store
    return row


def _expected(found: AnsweredClass, values: Mapping[str, float]) -> float | None:
    """The expected value of an answer on a scale; that of its level where it has no probabilities.

    None where it is no class.
    """
    if found.prediction is None:
        return None
    shares = found.probabilities or {found.prediction: 1.0}
    return float(f"{sum(share * values[name] for name, share in shares.items()):.7g}")


def _metrics(data: VideoDataModule, rows: Sequence[Mapping[str, Any]]) -> ClassificationMetrics:
    classes = data.card.classes
    names = [*classes, None]
    metrics = ClassificationMetrics(classes, data.card.levels)
    labels = [-1 if row["label"] is None else names.index(row["label"]) for row in rows]
    metrics.update(
        torch.tensor([names.index(row["prediction"]) for row in rows], dtype=torch.long),
        torch.tensor(labels, dtype=torch.long),
        torch.ones(len(rows), dtype=torch.bool),
        None if data.card.values is None else _shares(rows, classes),
    )
    return metrics


def _shares(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Tensor:
    """Probability of each class; an answer without probabilities is sure."""
    found = [row.get("probabilities", {row["prediction"]: 1.0}) for row in rows]
    values = [[one.get(name, 0.0) for name in classes] for one in found]
    return torch.tensor(values).reshape(len(rows), len(classes))


def _table(model: str, split: str, result: Mapping[str, Any]) -> str:
    """Both figures, and who is left out of the second."""
    only = result["answered_only"]
    lines = [(f"{model}, unanswered is wrong", dict(result))]
    if only["n_scored"]:
        lines.append((f"{model}, answered only", {**only, "n_unparsed": 0}))
    said = (
        f"{model} answered {only['n_scored']} of {result['n_scored']} {split} clips with a class "
        f"(coverage {only['coverage']:.2%})."
    )
    for status, ids in result["unanswered"].items():
        said += f"\n  {len(ids)} {status}: {_some(ids)}"
    return f"{result_table(lines)}\n{said}"


def rationale_store(experiment: Experiment, data: VideoDataModule) -> RationaleStore:
    """The rationale file of an endpoint, named after what determines it.

    Args:
        experiment: The settings, with an endpoint.
        data: The benchmark with the prompt that asks for the rationales.
    """
    settings = endpoint_of(experiment)
    if data.rationale_selection != "first":
        raise ValueError(
            f"data.rationale_selection is {data.rationale_selection}, but endpoint.model "
            f"({settings.model}) writes one rationale about each clip, and rbft does not elicit "
            "classes from a server. Set data.rationale_selection to first, or endpoint to null."
        )
    made_from = {
        "endpoint": settings.facts(rationale_sampling(experiment)),
        "prompt": data.card.prompt("rationale"),
        "frames": determining(asdict(data.frames)),
    }
    name = f"{data.benchmark}-{settings.short_name}-{data.rationale_prompt}-{digest(made_from)[:8]}"
    clips = about_clips(data, data.clips_to_describe(), STAGES["rationale"])
    return RationaleStore(
        data.rationale_file or experiment.logs / "rationales" / f"{name}.jsonl",
        {**made_from, "versions": versions()},
        clips,
        by_id=data.rationale_file is not None,
    )


def ask_for_rationales(
    experiment: Experiment, data: VideoDataModule, store: RationaleStore, missing: Sequence[str]
) -> list[str]:
    """Has the endpoint write rationales, each on disk as it comes.

    Args:
        experiment: The settings, with an endpoint.
        data: The benchmark with the prompt that asks for the rationales.
        store: Where they go.
        missing: Ids of the clips that lack one.

    Returns:
        Why clips have none: a line for each kind of reason.

    Raises:
        ValueError: See `ClipAsker.ask`.
    """
    settings, wanted = endpoint_of(experiment), set(missing)
    asker = ClipAsker(experiment, data)
    without: dict[str, list[str]] = {}

    def take(answer: Answer) -> None:
        text = answer.text.strip()
        if not answer.ok or not text:
            status = answer.status if not answer.ok else "empty"
            without.setdefault(status, []).append(answer.id)
            return
        record = {
            "id": answer.id,
            "rationale": text,
            "finish": CUT if answer.finish == "length" else STOPPED,
            "tokens": answer.completion_tokens or 0,
            "source": settings.model,
            **asker.shown.get(answer.id, {}),
        }
        store.append(0, [record])

    def lose(clip: str, error: str) -> None:
        record = {"id": clip, "rationale": "", "finish": UNDECODABLE, "tokens": 0}
        store.append(0, [{**record, "source": settings.model, "error": error}])
        log.warning(
            "%s Clip %s has no rationale; in training another takes its place. To try again, take "
            "its line out of %s.",
            error,
            clip,
            store.path,
        )

    clips = [clip for clip in data.clips_to_describe() if clip.id in wanted]
    asker.ask(
        clips,
        STAGES["rationale"],
        rationale_sampling(experiment),
        f"clips ({data.rationale_prompt})",
        take,
        lose,
    )
    return [f"{len(ids)} {status}: {_some(ids)}" for status, ids in without.items()]


def rationale_sampling(experiment: Experiment) -> Sampling:
    """How a rationale is decoded.

    Args:
        experiment: The settings, with an endpoint.
    """
    longest = experiment.settings.model.max_new_tokens
    return endpoint_of(experiment).sampling(longest, labels=False)


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")
