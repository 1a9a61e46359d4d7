"""`judge`: an LLM grades how much the rationales have to do with the task (Table 6)."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rbft.backbone.loading import short_name
from rbft.build import Experiment
from rbft.commands.rationales import Written, read_written
from rbft.engines.endpoint import EndpointEngine
from rbft.engines.request import Answer as EngineAnswer
from rbft.engines.request import Request as EngineRequest
from rbft.engines.request import Sampling
from rbft.engines.request import Token as EngineToken
from rbft.inputs import check_inputs
from rbft.rationales.calibration import FEWEST, Estimate, Key, load_human_scores
from rbft.rationales.judge import (
    ANCHORS,
    MAX_WORDS,
    REPEATS,
    Answer,
    Item,
    JudgeReport,
    Request,
    load_anchors,
    plain_text,
)
from rbft.rationales.judge import judge as grade
from rbft.rationales.rubric import Rubric, Token
from rbft.rationales.selection_report import told_note
from rbft.runs.folder import TOLD, read_json
from rbft.runtime.console import print_rank_zero, table
from rbft.runtime.files import write_json
from rbft.runtime.progress import track

MAX_TOKENS = 512  # of a verdict
MISSING = "--"


@dataclass
class Asker:
    """Puts the judge's questions to an endpoint.

    Attributes:
        engine: The endpoint.
        temperature: Of the judge's answers; None leaves it to the server.
        top_logprobs: For how many tokens log-probabilities are asked.
        lot: Number of this set of texts, under which the anchors are asked. Anchors are graded
            anew with every set, or answers from the store would hide that the judge has changed.
        anchors: The anchors' prompts.
        failed: Number of questions without an answer, by status.
        reasons: The first reason of each status.
    """

    engine: EndpointEngine
    temperature: float | None
    top_logprobs: int
    lot: int = 0
    anchors: frozenset[str] = frozenset()
    failed: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        """Gives an answer to each request, an empty one where there is none."""
        asked = [self.request(one) for one in requests]
        count, most = self.engine.estimate(asked) if not self.engine.offline else (0, None)
        if most is not None:
            money = f" and {most.money:.2f} in money" if most.money else ""
            print_rank_zero(
                f"{count} of {len(asked)} questions are to be sent to {self.engine.chat.model}, "
                f"the others are answered in {self.engine.store.path}: at most {most.tokens:,} "
                f"tokens{money}, if none is sent again."
            )
        answers = {
            answer.id: answer
            for answer in track(self.engine.answer(asked), "Judging", len(asked), "question")
        }
        return [self._answer(answers[one.id]) for one in asked]

    def request(self, one: Request) -> EngineRequest:
        """The question as the endpoint takes it."""
        form = {"name": "verdict", "strict": True, "schema": one.schema}
        sampling = Sampling(
            max_tokens=MAX_TOKENS,
            temperature=self.temperature,
            seed=one.seed,
            top_logprobs=self.top_logprobs,
            response_format={"type": "json_schema", "json_schema": form},
        )
        number = one.seed + (self.lot if one.prompt in self.anchors else 0)
        return EngineRequest(one.key, one.prompt, sampling=sampling, sample=number)

    def _answer(self, answer: EngineAnswer) -> Answer:
        if not answer.ok:
            # Another model's words, or a refusal, are no verdict of this judge.
            self.failed[answer.status] += 1
            self.reasons.setdefault(answer.status, answer.error or answer.refusal or answer.status)
            return Answer("")
        tokens = tuple(Token(one.text, _likeliest(one)) for one in answer.tokens or ())
        return Answer(answer.text, tokens, answer.model)


def _likeliest(token: EngineToken) -> dict[str, float]:
    """Log-probability of the likeliest tokens at a place, the one that was taken among them."""
    return {token.text: token.logprob} | dict(token.top)


def judge(
    experiment: Experiment,
    prompts: list[str] | None = None,
    repeats: int = REPEATS,
    texts: int | None = None,
    human: Path | None = None,
    anchors: Path | None = None,
    show_label: bool = False,
    temperature: float | None = 1.0,
    top_logprobs: int = 10,
) -> None:
    """Have an LLM grade from 0 to 1 how much the rationales have to do with the task (Table 6).

    The judge is the model of `endpoint`; it sees the texts alone. Answers are kept, so what was
    answered is never asked again.

    Args:
        experiment: The settings.
        prompts: Rationale prompts of the card that are compared, "[rationale, less, least]"; null
            takes the experiment's own.
        repeats: How often each text is graded.
        texts: Training clips whose rationales are graded, drawn by lot, the same for each prompt;
            null takes all.
        human: Scores that people gave to some of the texts, JSON lines with condition (the prompt's
            name), id (the clip's) and score (0 to 1); they correct the mean.
        anchors: Texts of known level, a YAML file; null takes those that rbft has for the card.
        show_label: Whether the judge is told the clip's class.
        temperature: Of the judge's answers; null leaves it to the server.
        top_logprobs: For how many tokens of the answer log-probabilities are asked, so that the
            score is the expectation over the levels; 0 for servers that give none.
    """
    if experiment.endpoint is None:
        raise ValueError(
            "judge asks a server, and endpoint is null. Set --endpoint.model to the model that "
            "judges and --endpoint.urls to its server (OpenAI's where it is left out). The "
            "backbone is not offered as a judge of its own texts."
        )
    people = load_human_scores(human) if human is not None else {}
    # The endpoint judges here: the rationales are those of the experiment without it.
    inputs = check_inputs(experiment.changed(endpoint=None), weights=False)
    inputs.card.refuse_several("judge, whose rubric asks about one question of the card,")
    written = read_written(inputs, prompts)
    engine = experiment.endpoint.engine(experiment.logs)
    _warn_of_own_texts(engine.chat.model, written)
    rubric, card = Rubric.load(), inputs.card
    items = _items(written, texts)
    _check_people(people, items)
    file = anchors or ANCHORS / f"{card.name}.yaml"
    known = []
    if anchors is not None or file.exists():
        known = load_anchors(file, rubric)
    else:
        print_rank_zero(
            f"rbft has no anchor texts for the card '{card.name}', so that a drift of the judge is "
            "not noticed. Give some with --anchors."
        )
    lot = hashlib.sha256(json.dumps([[*one.key, one.rationale] for one in items]).encode())
    asker = Asker(engine, temperature, top_logprobs, int(lot.hexdigest()[:10], 16) * 1000)
    asker.anchors = frozenset(
        rubric.ask(plain_text(one.rationale, MAX_WORDS)[0], card) for one in known
    )
    report = grade(
        items, card, asker, rubric=rubric, anchors=known, repeats=repeats, show_label=show_label
    )
    if not any(report.scores(name) for name in report.conditions):
        raise ValueError(f"The judge {engine.chat.model} graded no text: {_why(asker, report)}")
    first = next(iter(written.values())).store.path
    output = experiment.logs / "rationales" / f"{first.stem}-judge.json"
    before = read_json(output) if output.exists() else {}
    print_rank_zero(_table(report, people))
    print_rank_zero(str(report))
    told = _label_conditioned(items, written)
    for name, count in told.items():
        print_rank_zero(f"{name}: {told_note(count)}")
    if asker.failed:
        print_rank_zero(f"Questions without an answer: {_why(asker, report)}")
    drift = {}
    if (before.get("judge"), before.get("rubric")) == (engine.chat.model, report.rubric):
        drift = report.drift(before["anchors"])
        print_rank_zero(_drift(drift))
    made = {
        "judge": engine.chat.model,
        **report.as_dict(),
        "calibrated": {
            name: {"mean": one.value, "interval": [one.low, one.high], "n_human": one.n_human}
            for name, one in _calibrated(report, people).items()
        },
        "drift": {name: list(pair) for name, pair in drift.items()},
        "not_answered": dict(asker.failed),
        "repeats": repeats,
        "show_label": show_label,
        "temperature": temperature,
        **({TOLD: told} if told else {}),
    }
    write_json(output, made)
    print_rank_zero(f"Wrote all scores to {output}.")


def _items(written: Mapping[str, Written], texts: int | None) -> list[Item]:
    """The texts to grade: of the same training clips for each prompt, first sample of each."""
    first = {
        name: {one.clip: one for one in reversed(of.of_split("train"))}
        for name, of in written.items()
    }
    shared = set.intersection(*(set(samples) for samples in first.values()))
    lots = {
        clip: hashlib.sha256(clip.encode(errors="surrogatepass")).hexdigest() for clip in shared
    }
    if not lots:
        raise ValueError(
            f"No training clip has a rationale of each prompt ({', '.join(written)}), so there is "
            "nothing to compare. Run python -m rbft rationalize with the same --prompts."
        )
    chosen = sorted(lots, key=lambda clip: lots[clip])[:texts]
    return [
        Item(name, clip, samples[clip].text, samples[clip].label)
        for name, samples in first.items()
        for clip in chosen
    ]


def _label_conditioned(items: Sequence[Item], written: Mapping[str, Written]) -> dict[str, int]:
    """How many of the graded texts have a writer that was told the class, by prompt."""
    graded = {one.key for one in items}
    counts = {
        name: sum(one.label_conditioned and (name, one.clip) in graded for one in of.samples)
        for name, of in written.items()
    }
    return {name: count for name, count in counts.items() if count}


def _check_people(people: Mapping[Key, float], items: Sequence[Item]) -> None:
    """Refuses people's scores that cannot correct a mean, before anything is asked."""
    graded = {one.key for one in items}
    if strangers := sorted(key for key in people if key not in graded):
        condition, clip = strangers[0]
        raise ValueError(
            f"--human scores {len(strangers)} texts that are not graded (first: clip {clip} of "
            f"prompt {condition}). condition must be a name of --prompts, and id that of a "
            "training clip among --texts."
        )
    for name, count in Counter(condition for condition, _ in people).items():
        if count < FEWEST:
            raise ValueError(
                f"--human scores {count} text of the prompt {name}; {FEWEST} or more are needed "
                "to correct its mean. Have more scored, or leave it out."
            )


def _warn_of_own_texts(judge: str, written: Mapping[str, Written]) -> None:
    """Says where the judge has written the texts itself: judges favour their own."""
    own = sorted(
        name
        for name, one in written.items()
        if short_name(judge) in {short_name(writer) for writer in one.writers.values()}
    )
    if own:
        print_rank_zero(
            f"The judge {judge} has written the rationales of {', '.join(own)} itself; judges "
            "favour their own texts. Take another model to judge."
        )


def _why(asker: Asker, report: JudgeReport) -> str:
    """Why questions have no readable answer."""
    parts = [
        f"{count} {status} (first: {asker.reasons[status]})"
        for status, count in asker.failed.items()
    ]
    return "; ".join(parts) or ", ".join(f"{n} {why}" for why, n in report.unreadable.items())


def _calibrated(report: JudgeReport, people: Mapping[Key, float]) -> dict[str, Estimate]:
    """The means that people's scores correct, by prompt."""
    found = {}
    for name in report.conditions:
        scores = report.scores(name)
        # What the judge gave no readable answer for corrects nothing.
        mine = {key: value for key, value in people.items() if key in scores}
        if len(mine) >= FEWEST:
            found[name] = report.calibrated(name, mine)
    return found


def _table(report: JudgeReport, people: Mapping[Key, float]) -> str:
    """A row for each prompt: mean, interval, number of texts, the judge's spread."""
    corrected, rows = _calibrated(report, people), []
    for name in report.conditions:
        shown = [MISSING] * 3
        if report.scores(name):
            mean = report.mean(name)
            shown = [f"{mean.value:.2f}", f"{mean.low:.2f} to {mean.high:.2f}", str(mean.n)]
        row = [name, *shown, MISSING if report.spread is None else f"{report.spread:.3f}"]
        if people:
            row.append(f"{one}" if (one := corrected.get(name)) else MISSING)
        rows.append(row)
    headers = ["prompt", "task correlation", "95 % interval", "texts", "judge's spread"]
    return table(rows, [*headers, *(["corrected by people"] if people else [])])


def _drift(drift: Mapping[str, tuple[float, float]]) -> str:
    """What became of the anchors since the last judgement."""
    if not drift:
        return "No anchor has moved by half a level since the last judgement in this file."
    moved = ", ".join(f"{name} from {a:.2f} to {b:.2f}" for name, (a, b) in drift.items())
    return f"The judge has drifted since the last judgement in this file: anchor {moved}."
