"""From the labels that annotations use to the card's classes."""

from rbft.data.card import Card
from rbft.data.tables import shown


def match_label(value: object, card: Card, where: str) -> int:
    """The class that a label means: its name or, failing that, its word on the card.

    Args:
        value: The label as it stands in the annotation.
        card: The card with the classes.
        where: The label's place for the message.

    Returns:
        Index into `card.classes`.

    Raises:
        ValueError: If no class is meant, or several (labels of several classes are not supported).
    """
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        text = str(value).strip()
        if text in card.classes:
            return card.classes.index(text)
        index = card.parse(text)
        if index is not None:
            return index
        several = any(
            mark in text and all(part.strip() in card.classes for part in text.split(mark))
            for mark in ",;|/+-"
        )
    else:
        several = isinstance(value, list | tuple | set)
    if several:
        raise ValueError(
            f"{where}: label {shown(value)} is a list of classes. Clips with several labels are "
            "not supported: give each clip one class of the card, or leave the clip out."
        )
    allowed = ", ".join(
        name if name == word else f"{name} ('{word}')" for name, word in card.words.items()
    )
    raise ValueError(
        f"{where}: label {shown(value)} is no class of card '{card.name}'; allowed are {allowed}. "
        "Correct the label or add the class to the card's words."
    )
