import errno
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed

from rbft.clip import Images
from rbft.data import manifest as manifest_module
from rbft.data.manifest import Manifest, ManifestRow, check_same_on_all_processes, scan
from rbft.video.sampling import probe as probe_video
from tests.rights import folder_for_all, without_rights
from tests.videos import make_video


@dataclass(frozen=True)
class Clip:
    id: str
    path: Path
    label: int | None = 0
    split: str = "train"
    start: float | None = None
    end: float | None = None
    url: str | None = None
    refused: str = ""
    images: Images | None = None
    labels: tuple[int, ...] | None = None


class Probe:
    """Reads "<seconds>" from a file as if it were a video at 10 frames per second."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def __call__(self, path: Path) -> Any:
        self.opened.append(path.name)
        try:
            seconds = float(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path.name} is no video\nsecond line") from error
        return SimpleNamespace(
            duration=seconds,
            frames=int(seconds * 10),
            fps=10.0,
            width=84,
            height=56,
            truncated="",
            note="",
        )


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Clip]:
    def make(name: str, content: str | None = "6", **values: Any) -> Clip:
        path = tmp_path / "videos" / f"{name}.mp4"
        path.parent.mkdir(exist_ok=True)
        if content is not None:
            path.write_text(content)
        return Clip(name, path, **values)

    return make


def look(clips: list[Clip], probe: Callable[[Path], Any], cache: Path | None = None) -> Manifest:
    return scan(clips, probe, cache, workers=2, progress=False)


def test_every_status(make: Callable[..., Clip], probe: Probe, tmp_path: Path) -> None:
    folder = Clip("folder", tmp_path)
    clips = [
        make("good", url="https://example.org/good"),
        make("gone", None, split="test", label=1, url="https://example.org/gone"),
        make("broken", "mp4?"),
        make("empty", ""),
        folder,
        make("still", "0"),
        make("late", start=10.0, end=20.0),
        make("hidden", None, split="private", label=None),
        make("vague", split="excluded"),
        Clip("nested", clips_file(make) / "inside.mp4"),
    ]
    manifest = look(clips, probe)

    assert [(row.id, row.status, row.reason) for row in manifest.rows] == [
        ("good", "ok", ""),
        ("gone", "missing", "no such file"),
        ("broken", "unreadable", "broken.mp4 is no video"),
        ("empty", "unreadable", "is empty"),
        ("folder", "unreadable", "is no file"),
        ("still", "too_short", "has no frames"),
        ("late", "too_short", "lasts 6 s, so the clip from 10 s to 20 s holds nothing"),
        ("hidden", "private", ""),
        ("vague", "excluded", ""),
        ("nested", "missing", "no such file"),
    ]
    assert manifest.rows[0] == ManifestRow(
        "good", "train", 0, str(clips[0].path), "https://example.org/good", "ok", "",
        bytes=1, duration=6.0, frames=60, fps=10.0, width=84, height=56,
        digest=hashlib.sha256(b"6").hexdigest()[:32],
    )  # fmt: skip
    assert manifest.rows[1].split == "test"
    assert manifest.rows[1].label == 1
    assert sorted(probe.opened) == ["broken.mp4", "good.mp4", "late.mp4", "still.mp4"]


def clips_file(make: Callable[..., Clip]) -> Path:
    return make("good").path


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (None, None, ""),
        (2.0, None, ""),
        (None, 2.0, ""),
        (None, -2.0, ""),
        (5.0, -0.5, ""),
        (5.0, 6.9, ""),  # annotations are rounded
        (6.0, None, "lasts 6 s, so the clip from 6 s to the end holds nothing"),
        (None, -6.5, "lasts 6 s, so the clip from 0 s to -6.5 s holds nothing"),
        (3.0, 3.0, "lasts 6 s, so the clip from 3 s to 3 s holds nothing"),
    ],
)
def test_parts_of_a_file(
    make: Callable[..., Clip],
    probe: Probe,
    start: float | None,
    end: float | None,
    reason: str,
) -> None:
    (row,) = look([make("a", start=start, end=end)], probe).rows
    assert row.reason == reason
    assert row.status == ("too_short" if reason else "ok")


def test_clips_of_one_file_open_it_once(make: Callable[..., Clip], probe: Probe) -> None:
    clip = make("a")
    rows = look([clip, replace(clip, id="b", start=3.0)], probe).rows
    assert [row.frames for row in rows] == [60, 60]
    assert probe.opened == ["a.mp4"]


def test_rescan(make: Callable[..., Clip], probe: Probe, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "scan.jsonl"
    clips = [make("a"), make("b"), make("broken", "x"), make("gone", None)]
    first = look(clips, probe, cache)
    assert sorted(probe.opened) == ["a.mp4", "b.mp4", "broken.mp4"]

    probe.opened.clear()
    assert look(clips, probe, cache) == first
    assert probe.opened == ["broken.mp4"]  # what could not be read is tried again

    probe.opened.clear()
    make("broken", "3")
    clips[1].path.write_text("4")  # same size, so only the time of change tells
    os.utime(clips[1].path, ns=(1, 1))
    again = look([*clips, make("new")], probe, cache)
    assert sorted(probe.opened) == ["b.mp4", "broken.mp4", "new.mp4"]
    assert [row.duration for row in again.rows] == [6, 4, 3, None, 6]


def test_every_readable_file_has_a_digest_of_its_content(
    make: Callable[..., Clip], probe: Probe, tmp_path: Path
) -> None:
    cache = tmp_path / "scan.jsonl"
    clips = [make("a"), make("copy"), make("b", "7"), make("broken", "x"), make("gone", None)]
    late = replace(clips[0], id="late", start=10.0)
    clips.append(late)
    found = {row.id: row.digest for row in look(clips, probe, cache).rows}
    six = hashlib.sha256(b"6").hexdigest()[:32]
    seven = hashlib.sha256(b"7").hexdigest()[:32]
    assert found == {
        "a": six, "copy": six, "b": seven, "broken": None, "gone": None, "late": six,
    }  # fmt: skip


def test_a_file_in_the_place_of_another_is_seen(
    make: Callable[..., Clip], probe: Probe, tmp_path: Path
) -> None:
    """As rsync and cp -p leave it: the same size and time of change."""
    cache = tmp_path / "scan.jsonl"
    clip = make("a")
    before = look([clip], probe, cache).rows[0]
    status = clip.path.stat()
    new = tmp_path / "new"
    new.write_text("7")
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(clip.path)
    after = look([clip], probe, cache).rows[0]
    assert (before.duration, after.duration) == (6, 7)
    assert before.digest != after.digest


def test_other_content_of_the_same_size_and_time_is_seen(
    make: Callable[..., Clip], tmp_path: Path
) -> None:
    cache = tmp_path / "scan.jsonl"
    clip = make("a", "6" + " " * 50_000 + "7" + " " * 50_000 + "8")
    look([clip], lambda _: Probe()(make("known").path), cache)
    status = clip.path.stat()
    for place in (0, 50_001, 100_002):
        with clip.path.open("r+b") as stream:
            stream.seek(place)
            stream.write(b"9")
        os.utime(clip.path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert clip.path.stat().st_mtime_ns == status.st_mtime_ns
        probe = Probe()
        (row,) = look([clip], lambda _, probe=probe: probe(make("known").path), cache).rows
        assert probe.opened == ["known.mp4"], f"a change at byte {place} goes unseen"
        assert row.digest == hashlib.sha256(clip.path.read_bytes()).hexdigest()[:32]


def test_no_wrong_letter_in_the_cache_is_believed(
    make: Callable[..., Clip], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "scan.jsonl"
    clip = make("a")
    first = look([clip], Probe(), cache)
    good = cache.read_bytes()
    for place in range(len(good.rstrip())):
        changed = bytearray(good)
        changed[place] ^= 1  # a letter for its neighbour, "60" frames for "61"
        cache.write_bytes(changed)
        probe = Probe()
        assert look([clip], probe, cache) == first
        assert probe.opened == ["a.mp4"]
    # Told once, then blanked: the file was made anew, and its line is believed.
    caplog.clear()
    cache.write_bytes(good.replace(b"60", b"61"))
    assert look([clip], Probe(), cache) == first
    note = f"1 damaged lines of {cache} are left out; their files are read again."
    assert caplog.messages == [note]
    probe = Probe()
    assert look([clip], probe, cache) == first
    assert (caplog.messages, probe.opened) == ([note], [])


def test_what_another_version_scanned_is_scanned_again(
    make: Callable[..., Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, probe = tmp_path / "scan.jsonl", Probe()
    look([make("a")], Probe(), cache)
    monkeypatch.setattr(manifest_module, "VERSION", manifest_module.VERSION + 1)
    look([make("a", None)], probe, cache)
    assert probe.opened == ["a.mp4"]


def test_a_file_that_may_not_be_read_is_neither_missing_nor_damaged(probe: Probe) -> None:
    with folder_for_all() as root:
        (root / "closed").mkdir()
        paths = [root / "a.mp4", root / "closed/b.mp4", root / "gone.mp4"]
        for path in paths[:2]:
            path.write_text("6")
        paths[0].chmod(0)
        (root / "closed").chmod(0)
        with without_rights():
            rows = look([Clip(path.stem, path) for path in paths], probe).rows
        (root / "closed").chmod(0o755)
    assert [(row.status, row.reason) for row in rows] == [
        ("unreadable", "cannot be read: Permission denied"),
        ("unreadable", "cannot be read: Permission denied"),
        ("missing", "no such file"),
    ]
    assert probe.opened == []


def test_the_cache_knows_files_by_absolute_path(
    make: Callable[..., Clip], probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "scan.jsonl"
    clip = make("a")
    look([clip], probe, cache)
    monkeypatch.chdir(clip.path.parent)
    (row,) = look([replace(clip, path=Path("a.mp4"))], probe, cache).rows
    assert probe.opened == ["a.mp4"]
    assert row.path == "a.mp4"


def test_an_interrupted_scan_goes_on(
    make: Callable[..., Clip],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "scan.jsonl"
    clips = [make(str(number)) for number in range(6)]
    note, noted = manifest_module._note, []

    def interrupted(stream: Any, file: dict[str, Any]) -> None:
        note(stream, file)
        noted.append(Path(file["path"]).name)
        if len(noted) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(manifest_module, "_note", interrupted)
        with pytest.raises(KeyboardInterrupt):
            look(clips, Probe(), cache)
    with cache.open("ab") as stream:
        stream.write(b'{"path": "4.mp4", "by')  # a kill in the middle of a line

    rest = Probe()
    with caplog.at_level(logging.INFO):
        manifest = look(clips, rest, cache)
    assert {row.status for row in manifest.rows} == {"ok"}
    assert sorted([*noted, *rest.opened]) == [f"{number}.mp4" for number in range(6)]
    assert set(caplog.messages) == {
        f"1 damaged lines of {cache} are left out; their files are read again."
    }
    last = Probe()
    look(clips, last, cache)
    assert last.opened == []


@given(noise=st.lists(st.binary(max_size=30), max_size=5))
def test_a_damaged_cache_is_no_obstacle(
    noise: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("noise")
    clip = Clip("a", folder / "a.mp4")
    clip.path.write_text("6")
    cache = folder / "scan.jsonl"
    look([clip], Probe(), cache)
    cache.write_bytes(b"\n".join([*noise, cache.read_bytes(), *noise]))
    probe = Probe()
    assert look([clip], probe, cache).rows[0].frames == 60
    assert probe.opened == []


def test_a_cache_that_cannot_be_written(
    make: Callable[..., Clip], probe: Probe, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"The scan cannot keep its results in {blocked}/scan.jsonl: File exists. Set "
            "data.cache_folder to a folder that can be written."
        ),
    ):
        look([make("a")], probe, blocked / "scan.jsonl")


class Full:
    """A file on a disk that becomes full in the middle of a line."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(data[: self.room])
        self.room -= written
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1, 100, 300])
def test_a_full_disk(
    room: int,
    make: Callable[..., Clip],
    probe: Probe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "scan.jsonl"
    opened = manifest_module._open_cache
    clips = [make(str(number)) for number in range(5)]
    with monkeypatch.context() as patch:
        patch.setattr(manifest_module, "_open_cache", lambda path: Full(opened(path), room))
        with pytest.raises(ValueError, match=r"scan\.jsonl: No space left on device\. Set data\."):
            look(clips, probe, cache)
    assert cache.stat().st_size == room
    assert {row.status for row in look(clips, probe, cache).rows} == {"ok"}  # with room again


def test_a_folder_that_cannot_be_written_but_knows_all(
    make: Callable[..., Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    cache = tmp_path / "scan.jsonl"
    first = look([make("a")], Probe(), cache)
    monkeypatch.setattr(manifest_module, "_open_cache", refuse)
    assert look([make("a", None)], Probe(), cache) == first
    with pytest.raises(ValueError, match=r"scan\.jsonl: Read-only file system\. Set data\.cache_f"):
        look([make("b")], Probe(), cache)


# Several processes


def scan_slowly(clips: list[Clip], cache: Path, ready: Any, found: Any) -> None:
    probe = Probe()

    def slow(path: Path) -> Any:
        time.sleep(0.02)
        return probe(path)

    ready.wait()
    found.put((look(clips, slow, cache), probe.opened))


def test_two_processes_at_once_open_every_file_once(
    make: Callable[..., Clip], tmp_path: Path
) -> None:
    clips = [make(f"{number:02}") for number in range(20)]
    processes = get_context("spawn")
    ready, found = processes.Barrier(2), processes.Queue()
    arguments = (clips, tmp_path / "scan.jsonl", ready, found)
    running = [processes.Process(target=scan_slowly, args=arguments) for _ in range(2)]
    for process in running:
        process.start()
    (one, opened), (two, also_opened) = (found.get(timeout=60) for _ in running)
    for process in running:
        process.join()
    assert one == two
    assert sorted([*opened, *also_opened]) == [clip.path.name for clip in clips]
    assert {row.status for row in one.rows} == {"ok"}


def hold_and_die(cache: Path, held: Any) -> None:
    with manifest_module._alone(cache):
        held.set()
        time.sleep(60)


def test_a_killed_process_blocks_nobody(
    make: Callable[..., Clip], probe: Probe, tmp_path: Path
) -> None:
    processes = get_context("spawn")
    held = processes.Event()
    process = processes.Process(target=hold_and_die, args=(tmp_path / "scan.jsonl", held))
    process.start()
    assert held.wait(60)
    process.kill()
    process.join()
    assert look([make("a")], probe, tmp_path / "scan.jsonl").rows[0].status == "ok"


# What the second of two processes sees where the first sees a and b, and what is said of it.
OTHERS = [
    (["a", "b"], None),
    (["a"], "2 on process 0, 1 on process 1; first that not all have: b"),
    (["a", "c"], "2 on process 0, 2 on process 1; first that not all have: b"),
    (["b", "a"], "2 on process 0, 2 on process 1; in another order"),
]


def meet(rank: int, store: Path, found: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for other, _ in OTHERS:
        try:
            check_same_on_all_processes(other if rank else ["a", "b"])
            found.put((rank, None))
        except ValueError as error:
            found.put((rank, str(error)))
    distributed.destroy_process_group()


def test_processes_must_see_the_same_clips(tmp_path: Path) -> None:
    processes = get_context("spawn")
    found = processes.Queue()
    running = [
        processes.Process(target=meet, args=(rank, tmp_path / "store", found)) for rank in range(2)
    ]
    for process in running:
        process.start()
    said = [found.get(timeout=120) for _ in range(2 * len(OTHERS))]
    for process in running:
        process.join()
    expected = [
        difference
        and f"The processes of this run do not see the same clips ({difference}). Their files "
        "differ, or changed while the run began: see that all machines read the same folder, and "
        "start again."
        for _, difference in OTHERS
    ]
    for rank in range(2):
        assert [text for process, text in said if process == rank] == expected


# Files


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """On Linux a name is bytes; from Latin-1 it is no UTF-8."""
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    path.write_text("6")
    cache = tmp_path / "scan.jsonl"
    manifest = look([Clip(path.stem, path)], Probe(), cache)
    again = Probe()
    assert look([Clip(path.stem, path)], again, cache) == manifest
    assert again.opened == []
    manifest.save(tmp_path / "manifest.jsonl")
    assert Manifest.load(tmp_path / "manifest.jsonl") == manifest


def test_real_files(tmp_path: Path) -> None:
    video = make_video(tmp_path / "clip.mp4", frames=40, height=96, width=128, fps=10)
    half = tmp_path / "half.mp4"
    half.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    page = tmp_path / "page.mp4"
    page.write_text("<html>404</html>")
    clips = [Clip(path.stem, path) for path in (video, half, page)]
    good, *bad = scan(clips, probe_video, None, workers=2, progress=False).rows

    assert (good.status, good.frames, good.fps, good.width, good.height) == ("ok", 40, 10, 128, 96)
    assert good.duration == 4
    assert [row.status for row in bad] == ["unreadable", "unreadable"]
    for row in bad:
        assert row.reason
        assert str(tmp_path) not in row.reason
        assert not row.reason.endswith(".")


def test_progress(
    make: Callable[..., Clip],
    probe: Probe,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scan([make("a"), make("b", "x")], probe, None, workers=1)
    assert capsys.readouterr().err == ""  # nothing is shown of what takes but a moment
    monkeypatch.setattr(manifest_module, "BAR_DELAY", 0.0)
    scan([make("a"), make("b", "x")], probe, None, workers=1)
    shown = capsys.readouterr().err
    assert shown.startswith("Scanning videos: 1/2 files, ")
    assert ", 1 ok, 0:00 left\n" in shown or ", 1 unreadable, 0:00 left\n" in shown
    assert shown.endswith("Scanning videos: 2 files in 0:00\n")


def test_save_and_load(make: Callable[..., Clip], probe: Probe, tmp_path: Path) -> None:
    manifest = look([make("ünï"), make("gone", None, label=None)], probe)
    manifest.save(tmp_path / "new" / "manifest.jsonl")
    assert Manifest.load(tmp_path / "new" / "manifest.jsonl") == manifest


def rows(split: str, label: int | None, **statuses: int) -> list[ManifestRow]:
    return [
        ManifestRow(
            id=f"{split}-{label}-{status}{number}",
            split=split,
            label=label,
            path=f"videos/{split}-{label}-{status}{number}.mp4",
            url=None,
            status=status,
            reason="" if status == "ok" else f"is {status}",
        )
        for status, count in statuses.items()
        for number in range(count)
    ]


MANIFEST = Manifest(
    (
        *rows("train", 1, missing=2, ok=7),
        *rows("train", 0, ok=4, unreadable=1),
        *rows("test", 1, ok=5),
        *rows("private", None, private=3),
    )
)


def test_table() -> None:
    assert MANIFEST.table(["normal", "abnormal"]) == (
        ["split", "class", "ok", "missing", "unreadable", "private", "clips"],
        [
            ["train", "normal", "4", "0", "1", "0", "5"],
            ["train", "abnormal", "7", "2", "0", "0", "9"],
            ["test", "abnormal", "5", "0", "0", "0", "5"],
            ["private", "unknown", "0", "0", "0", "3", "3"],
            ["all", "", "16", "2", "1", "3", "22"],
        ],
    )


def test_missing_list() -> None:
    with_url = replace(MANIFEST.rows[0], url="https://example.org/v")
    manifest = Manifest((with_url, *MANIFEST.rows[1:]))
    assert manifest.missing_list() == ["https://example.org/v", "train-1-missing1"]


MESSAGE = (
    "3 of 14 train clips of SmartHome are not usable (2 missing, 1 unreadable; first: "
    "train-1-missing0.mp4: is missing, train-1-missing1.mp4: is missing, "
    "train-0-unreadable0.mp4: is unreadable)."
)


def test_policy_error() -> None:
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"{MESSAGE}\npython -m rbft scan lists them all. Set data.on_missing to skip or warn "
            "to go on without them."
        ),
    ):
        MANIFEST.apply_policy("SmartHome", "error", 0.0)


@pytest.mark.parametrize("policy", ["skip", "warn"])
def test_policy_without_them(policy: Literal["skip", "warn"]) -> None:
    usable, messages = MANIFEST.apply_policy("SmartHome", policy, 0.5)
    assert len(usable) == 16
    assert set(usable) == {row.id for row in MANIFEST.rows if row.status == "ok"}
    assert messages == [MESSAGE]


def test_policy_with_nothing_missing() -> None:
    manifest = Manifest(tuple(rows("train", 0, ok=2) + rows("private", None, private=3)))
    assert manifest.apply_policy("SmartHome", "error", 1.0) == (["train-0-ok0", "train-0-ok1"], [])


def test_too_little_is_left() -> None:
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"{MESSAGE} That leaves 78.6%, and data.min_coverage asks for 90.0%.\n"
            "python -m rbft scan lists them all."
        ),
    ):
        MANIFEST.apply_policy("SmartHome", "skip", 0.9)


def test_nothing_is_left() -> None:
    manifest = Manifest(tuple(rows("train", 0, ok=1) + rows("test", 0, missing=4)))
    with pytest.raises(
        ValueError,
        match=re.escape(
            "4 of 4 test clips of SmartHome are not usable (4 missing; first: test-0-missing0.mp4: "
            "is missing, test-0-missing1.mp4: is missing, test-0-missing2.mp4: is missing). That "
            "leaves none.\npython -m rbft scan lists them all."
        ),
    ):
        manifest.apply_policy("SmartHome", "warn", 0.0)


def test_a_rescan_of_many_rows_opens_and_writes_nothing(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number}.mp4").write_text("6")
    clips = [Clip(str(n), tmp_path / f"{n % 1000}.mp4", start=n / 10_000) for n in range(10_000)]
    cache, probe = tmp_path / "scan.jsonl", Probe()
    first = look(clips, probe, cache)
    assert len(probe.opened) == 1000
    written = cache.read_bytes()

    again = Probe()
    assert look(clips, again, cache) == first
    assert again.opened == []
    assert cache.read_bytes() == written
    assert len(first.rows) == 10_000


def test_truncated_files(make: Callable[..., Clip]) -> None:
    def look_into(path: Path) -> SimpleNamespace:
        cut = "it holds 30 of the 60 frames that it states" if path.stem == "cut" else ""
        facts = {"frames": 60, "fps": 10.0, "width": 84, "height": 56, "note": ""}
        return SimpleNamespace(duration=6.0, truncated=cut, **facts)

    clips = [
        make("cut", label=0, split="train"),
        make("whole", label=0, split="train", end=6.9),  # rounded
        make("short", label=0, split="train", start=1.0, end=10.0),
    ]
    manifest = look(clips, look_into)
    assert [(row.status, row.reason) for row in manifest.rows] == [
        ("truncated", "it holds 30 of the 60 frames that it states"),
        ("ok", ""),
        ("truncated", "the clip goes to 10 s, and its file ends after 6.0 s"),
    ]
    with pytest.raises(
        ValueError, match=r"\(2 truncated; first: cut\.mp4: it holds 30 of"
    ) as error:
        manifest.apply_policy("SmartHome", "error", 0.0)
    assert "Set data.damaged to use to take truncated files for what they hold." in str(error.value)
    accepted = manifest.accept_truncated()
    assert accepted.apply_policy("SmartHome", "error", 1.0) == (["cut", "whole", "short"], [])
    assert accepted.rows[0].note == "it holds 30 of the 60 frames that it states"


def test_a_truncated_video_in_a_scan(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.ts")
    path.write_bytes(path.read_bytes()[:-100])
    clip = Clip("a", path, 0, "train")
    (row,) = scan([clip], probe_video, None, workers=1, progress=False).rows
    assert row.status == "truncated"
    assert row.reason == f"it ends within a packet; {row.frames} frames (4.0 s) are there"


def test_a_table_of_clips_with_several_classes(tmp_path: Path) -> None:
    """A clip stands in the row of each of its classes, and once among all."""
    rows = [
        replace(MANIFEST.rows[0], id=str(n), status="ok", label=None, labels=own)
        for n, own in enumerate([(0, 1), (1,), (), None])
    ]
    Manifest(tuple(rows)).save(tmp_path / "manifest.jsonl")
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    assert ["labels" in line for line in lines] == [True, True, True, False]
    for manifest in (Manifest(tuple(rows)), Manifest.load(tmp_path / "manifest.jsonl")):
        assert manifest.table(["cat", "dog"])[1] == [
            ["train", "cat", "1", "1"],
            ["train", "dog", "2", "2"],
            ["train", "none", "1", "1"],
            ["train", "unknown", "1", "1"],
            ["all", "", "4", "4"],
        ]


def test_the_scan_keeps_the_classes_of_clips(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("9")
    clip = Clip("a", tmp_path / "a.mp4", None, labels=(0, 2))
    (row,) = look([clip], Probe()).rows
    assert (row.label, row.labels) == (None, (0, 2))
