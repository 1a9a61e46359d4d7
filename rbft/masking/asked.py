"""A server that names a clip's objects, or says where they are in a frame."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from rbft.engines.endpoint import EndpointEngine
from rbft.engines.request import Answer, Request, Sampling
from rbft.engines.settings import EndpointSettings
from rbft.video.sampling import Video

MAX_TOKENS = 512  # of an answer


class ServerAsker:
    """Asks a server about still pictures; every answer is kept in the endpoint's replay store.

    Args:
        settings: The endpoint; pictures are sent as images, whatever it says.
        logs: Folder of all runs.
    """

    def __init__(self, settings: EndpointSettings, logs: Path) -> None:
        self.settings = settings
        self.engine: EndpointEngine = settings.engine(logs)
        self.sampling: Sampling = settings.sampling(MAX_TOKENS, labels=False)
        self.without: Counter[str] = Counter()  # questions without an answer, by status

    def ask(self, prompts: Mapping[str, tuple[str, Callable[[], Video]]]) -> dict[str, str]:
        """The texts that the server answers; empty where it declined.

        Args:
            prompts: Prompt and pictures of each question, by an id.

        Raises:
            ValueError: If questions were not sent or not answered; what was answered is kept.
        """
        requests = [
            Request(name, prompt, video, sampling=self.sampling)
            for name, (prompt, video) in prompts.items()
        ]
        with closing(self.engine.answer(requests)) as answers:
            found = {answer.id: answer for answer in answers}
        self._check(list(found.values()))
        self.without.update(one.status for one in found.values() if not one.ok)
        return {name: found[name].text if found[name].ok else "" for name in prompts}

    def _check(self, answers: Sequence[Answer]) -> None:
        for status, what in (("not_sent", "was not asked"), ("failed", "gave no answer to")):
            left = [one for one in answers if one.status == status]
            if left:
                raise ValueError(
                    f"{self.settings.model} {what} {len(left)} of {len(answers)} questions about "
                    f"objects (first: {left[0].id}). {left[0].error} Started again, it goes on "
                    "where it stopped."
                )
