"""What metrics are called in TensorBoard, which shows them ordered by name.

Everywhere else (settings such as `keep_metric`, other loggers, the screen) a metric is called by
its split first: `train/loss`, `val/accuracy`, `test/f1/macro`. Ordered like that, TensorBoard would
open on learning rates and on the F1 of each class. So loss and accuracy stand in groups of their
own, which come first: `accuracy/test`, `accuracy/val`, `loss/train`, `loss/val`.
"""

import re

EPOCH = "train/epoch"  # Lightning calls it "epoch"
FIRST = r"accuracy|loss"
NAME = re.compile(rf"(train|val|test)/({FIRST})(_\w+)?")
TAG = re.compile(rf"({FIRST})/(train|val|test)(_\w+)?")


def tag_of(name: str) -> str:
    """The tag of a metric: "train/loss_class" is `loss/train_class`, others keep their names.

    Args:
        name: Name of the metric.
    """
    if name == "epoch":
        return EPOCH
    found = NAME.fullmatch(name)
    return name if found is None else f"{found[2]}/{found[1]}{found[3] or ''}"


def name_of(tag: str) -> str:
    """The metric of a tag, see `tag_of`.

    Args:
        tag: As it stands in an event file.
    """
    if tag == EPOCH:
        return "epoch"
    found = TAG.fullmatch(tag)
    return tag if found is None else f"{found[2]}/{found[1]}{found[3] or ''}"
