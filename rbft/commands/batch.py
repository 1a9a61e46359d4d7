"""`batch`: what a server would be asked, as files for batch APIs, and what comes back of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from lightning.fabric.utilities.rank_zero import _get_rank

from rbft.build import Experiment
from rbft.clip import Clip
from rbft.data.base import VideoDataModule
from rbft.endpoint import (
    NO_ENDPOINT,
    endpoint_of,
    label_sampling,
    rationale_sampling,
    rationale_store,
)
from rbft.engines.batchfile import SHOWN, BatchResult, Written, read_batch, write_batch
from rbft.engines.request import Request
from rbft.runtime.console import print_rank_zero
from rbft.stage_zero import prompt_variants
from rbft.stages import LABEL, STAGES
from rbft.video.sampling import Video, VideoError

SPLITS = {"test": "test", "validate": "val"}


def batch(
    experiment: Experiment,
    command: Literal["test", "validate", "rationalize"] = "test",
    results: list[Path] | None = None,
    path: Path | None = None,
    prompts: list[str] | None = None,
) -> None:
    """Write what the endpoint would be asked into files for a batch API, or read the results.

    Batch APIs (OpenAI's, vllm run-batch) take a file of requests and give one of results. The
    results go into the replay store, where the command that they are for finds them and asks a
    server for the rest alone.

    Args:
        experiment: The settings.
        command: Whose requests: those of test, validate or rationalize.
        results: Result and error files that came back, "[output.jsonl, errors.jsonl]"; null writes
            the request files.
        path: What request files are named after: a.jsonl makes a-00001.jsonl and so on; null takes
            `<logs>/batches/<model>-<command>.jsonl`.
        prompts: For rationalize, rationale prompts of the card, "[rationale, less, least]"; null
            takes the experiment's own.

    Raises:
        ValueError: If there is no endpoint, or nothing to ask; see also `write_batch` and
            `read_batch`.
    """
    if experiment.endpoint is None:
        raise ValueError(
            "batch writes down what an endpoint is asked, and there is none. Name its model with "
            "--endpoint.model."
        )
    if prompts is not None and command != "rationalize":
        raise ValueError(
            f"--prompts [{', '.join(prompts)}] is for --command rationalize; {command} has one "
            "prompt. Leave it out."
        )
    if _get_rank():  # one process writes
        return
    settings = endpoint_of(experiment)
    chat, store = settings.chat(), settings.replay(experiment.logs)
    if path is None:
        path = experiment.logs / "batches" / f"{settings.short_name}-{command}.jsonl"
    if results is not None:
        found = read_batch(path, results, chat, store)
        _say_read(found, settings.model, f"{store.path}", command)
        return
    data = experiment.data()
    if command != "rationalize":
        data.card.refuse_several("An endpoint that classifies", NO_ENDPOINT)
    data.check(experiment.stages if command == "rationalize" else [])
    for note in data.notes:
        print_rank_zero(note)
    broken: list[ValueError] = []
    requests = _requests(experiment, data, command, prompts, broken)
    budget = settings.budget(experiment.logs)
    pictures = settings.frames == "images"
    if pictures:
        _ = budget.image_tokens  # refuses limits that cannot be kept
    written = write_batch(requests, path, chat, store, budget)
    cost = budget.describe_most(written.most, pictures=pictures)
    _say_written(written, settings.model, command, cost)


def _requests(
    experiment: Experiment,
    data: VideoDataModule,
    command: str,
    prompts: Sequence[str] | None,
    broken: list[ValueError],
) -> Iterator[Request]:
    """What the command would ask, with the ids of the clips, behind the prompt's where several are.

    Raises:
        ValueError: If the videos have gone, or there is no clip to ask about.
    """

    def video(of: VideoDataModule, clip: Clip) -> Video:
        try:
            return of.reader.decode(clip)
        except VideoError:
            raise
        except ValueError as error:  # not of this clip alone: the videos have gone
            broken.append(error)
            raise

    if command == "rationalize":
        stage, sampling = STAGES["rationale"], rationale_sampling(experiment)
        asked = []
        for name, variant in prompt_variants(experiment, data, prompts).items():
            clips = data.clips_to_describe() if data.rationale_ratio else []
            written = rationale_store(experiment, variant)
            written.read()
            missing = {*written.missing([clip.id for clip in clips])}
            prefix = f"{name}/" if prompts else ""
            asked += [(prefix, variant, clip) for clip in clips if clip.id in missing]
    else:
        stage, sampling = LABEL, label_sampling(experiment, data)
        asked = [("", data, clip) for clip in data.clips(SPLITS[command])]
    if not asked:
        raise ValueError(
            f"{command} has nothing to ask: every clip has its rationale, or there are no clips."
            if command == "rationalize"
            else f"{type(data).__name__} has no {SPLITS[command]} split to ask about."
        )
    for prefix, of, clip in asked:
        yield Request(
            f"{prefix}{clip.id}",
            stage.prompt(of.card, clip),
            partial(video, of, clip),
            sampling=sampling,
        )
        if broken:
            raise broken[0]


def _say_written(written: Written, model: str, command: str, cost: str) -> None:
    total = written.requests + len(written.known) + len(written.failed)
    said = f"{model}: {written.requests} of {total} requests of {command} written"
    if written.known:
        said += f"; {len(written.known)} are answered already"
    print_rank_zero(f"{said}.")
    for id, reason in written.failed.items():
        print_rank_zero(f"  {id} cannot be asked about: {reason}")
    for file in written.files:
        print_rank_zero(f"  {file} ({file.stat().st_size / 1e6:.1f} MB)")
    if written.files:
        print_rank_zero(f"They cost at most {cost}; what batches cost less is not in that.")
        print_rank_zero(
            "Hand them to the batch API, then give the same command its files: --results "
            '"[output.jsonl, errors.jsonl]".'
        )


def _say_read(found: BatchResult, model: str, store: str, command: str) -> None:
    """Accounts for every id, and names what to do about those without a usable answer."""
    print_rank_zero(f"{model}: {found.describe()}. Answers are in {store}.")
    kinds = Counter(answer.status for answer in found.answers.values() if not answer.ok)
    for status, count in kinds.items():
        ids = [id for id, answer in found.answers.items() if answer.status == status]
        first = found.answers[ids[0]].error
        print_rank_zero(f"  {count} {status}: {', '.join(ids[:SHOWN])} ({first})")
    reasons: dict[str, list[str]] = {}
    for id, reason in found.failed.items():
        reasons.setdefault(reason, []).append(id)
    for reason, ids in reasons.items():
        print_rank_zero(f"  {len(ids)} failed: {', '.join(ids[:SHOWN])} ({reason})")
    left = len(found.failed) + len(found.missing)
    if left:
        print_rank_zero(
            f"{left} are without an answer: python -m rbft {command} asks the server for them, and "
            "batch without --results writes them into new files."
        )
    else:
        print_rank_zero(f"python -m rbft {command} with the same settings finds them.")
