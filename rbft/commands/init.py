"""`init`: a card and an experiment for a domain of one's own."""

from pathlib import Path

from rbft.commands.starter_card import write_starter
from rbft.runtime.console import print_rank_zero


def init(domain: str, classes: list[str], output: Path = Path("card.yaml")) -> None:
    """Write a commented card for a domain of your own, and an experiment that uses it.

    Args:
        domain: What the clips show, as it reads before "video": "conveyor belt".
        classes: Names of the classes, "[pass, fail]"; also the words that the model answers
            with until you change them on the card.
        output: The card to write; the experiment goes beside it.
    """
    experiment = write_starter(domain, classes, output)
    print_rank_zero(
        f"Wrote {output}: put your own words into it.\n"
        f"Wrote {experiment}: say there where your videos are (data.init_args.root).\n"
        f"Then: python -m rbft scan --config {experiment}"
    )
