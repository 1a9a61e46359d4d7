"""Curves out of TensorBoard's event files, read without torch and TensorBoard's own reader."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rbft.runs.tags import name_of

HEADER, CHECKSUM = struct.Struct("<Q"), 4  # length and its checksum, data and its checksum
LONGEST = 1 << 30  # bytes of a record above which the length is taken for damaged

Curve = tuple[tuple[int, float], ...]


class DamagedEventsError(ValueError):
    """An event file that ends in the middle, or holds something else."""


def read_curves(files: Sequence[Path]) -> tuple[Mapping[str, Curve], list[str]]:
    """The scalars of some event files of one stage.

    A stage that was resumed has several files, of which later ones count where steps overlap.

    Args:
        files: Event files.

    Returns:
        Step and value by metric, in the order of the steps, and what is wrong with files, a text
        each.
    """
    found: dict[str, dict[int, tuple[float, float]]] = {}
    problems = []
    for file in sorted(files):
        try:
            for tag, step, when, value in _scalars(file):
                points = found.setdefault(name_of(tag), {})
                if step not in points or points[step][0] <= when:
                    points[step] = (when, value)
        except (DamagedEventsError, OSError) as error:
            problems.append(f"{file.name}: {error}")
    curves = {
        name: tuple((step, points[step][1]) for step in sorted(points))
        for name, points in found.items()
    }
    return curves, problems


def _scalars(file: Path) -> Iterator[tuple[str, int, float, float]]:
    """Tag, step, time and value of each scalar of a file."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto import event_pb2

    for record in _records(file.read_bytes()):
        event = event_pb2.Event()  # pyright: ignore[reportAttributeAccessIssue]
        try:
            event.ParseFromString(record)
        except DecodeError:
            raise DamagedEventsError(
                "is damaged: a record is no event; what stands before is shown."
            ) from None
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield value.tag, event.step, event.wall_time, value.simple_value
            elif value.metadata.plugin_data.plugin_name == "scalars" and value.tensor.float_val:
                yield value.tag, event.step, event.wall_time, value.tensor.float_val[0]


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a TFRecord file; its checksums are not looked at, protobuf checks enough."""
    place = 0
    while place < len(content):
        if place + HEADER.size > len(content):
            raise DamagedEventsError("ends in the middle of a record; what stands before is shown.")
        (length,) = HEADER.unpack_from(content, place)
        start = place + HEADER.size + CHECKSUM
        if length > LONGEST or start + length > len(content):
            raise DamagedEventsError("ends in the middle of a record; what stands before is shown.")
        yield content[start : start + length]
        place = start + length + CHECKSUM


def thinned(curve: Curve, most: int) -> Curve:
    """The curve with at most so many points, evenly chosen; the first and the last stay.

    Args:
        curve: Step and value.
        most: Points to keep, 2 or more.
    """
    if len(curve) <= most:
        return curve
    last = len(curve) - 1
    return tuple(curve[round(place * last / (most - 1))] for place in range(most))
