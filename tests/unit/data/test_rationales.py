import json
import logging
import re
import tempfile
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from rbft.data.rationales import ByRule, RationaleStore, about, mix
from rbft.runtime.jsonl import json_line

MADE_FROM = {
    "backbone": "3f2a",
    "prompt": "Describe the clip.",
    "frames": {"fps": 1.0, "max_pixels": 151200},
    "versions": {"torch": "2.15"},
}


def record(name: str, text: str | None = None) -> dict[str, Any]:
    return {
        "id": name,
        "rationale": f"Clip {name} shows a bear." if text is None else text,
        "finish": "stop",
        "tokens": 7,
        "source": "self",
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rationales" / "smarthome-qwen-rationale.jsonl"


CLIPS = [f"clip {number}" for number in range(12)]
NAMES = [*"abcdz", *CLIPS]
ABOUT = {name: about(f"video {name}", None, None, "Describe the clip.") for name in NAMES}


def open_store(
    path: Path,
    clips: Any = ABOUT,
    *,
    by_id: bool = False,
    samples: int = 1,
    selection: Literal["first", "consistent"] = "first",
    **changes: Any,
) -> RationaleStore:
    made_from = MADE_FROM | changes
    selector = ByRule(selection)
    return RationaleStore(path, made_from, clips, by_id=by_id, samples=samples, selector=selector)


def test_append_and_reopen(path: Path) -> None:
    store = open_store(path)
    assert store.missing(["b", "a"]) == ["b", "a"]
    store.append(0, [record("a"), record("b", "Line one.\nLine two: “ünïcode” \u2028.")])
    store.append(0, [])

    for known in (store, open_store(path)):
        assert known.missing(["b", "c", "a"]) == ["c"]
        assert known.texts() == {
            "a": "Clip a shows a bear.",
            "b": "Line one.\nLine two: “ünïcode” \u2028.",
        }
    assert not path.exists()  # only merging makes the file itself


def test_a_text_of_one_s_own_may_have_ended_in_any_way(tmp_path: Path) -> None:
    store = open_store(tmp_path / "logs/rationales/mine.jsonl")
    ends = {"a": "complete", "b": "written", "c": "undecodable", "z": "length"}
    store.append(0, [record(name) | {"finish": finish} for name, finish in ends.items()])
    assert (store.undecodable(), store.cut()) == ({"c"}, {"z"})
    assert set(store.texts()) == {"a", "b", "z"}


def test_merge_of_two_processes_in_order(path: Path) -> None:
    first, second = open_store(path), open_store(path)
    first.append(0, [record("c"), record("z")])
    second.append(1, [record("b"), record("a")])
    first.merge(["a", "b", "c", "d"])

    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == list("abcz")
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "smarthome-qwen-rationale.jsonl",
        "smarthome-qwen-rationale.provenance.json",
    ]
    assert first.missing("abcz") == []
    # The other process's store goes on with a new part.
    second.append(1, [record("d")])
    assert open_store(path).missing("abcdz") == []


def test_what_a_killed_process_leaves(path: Path) -> None:
    open_store(path).append(0, [record("a")])
    part = path.with_name(f"{path.name}.part0")
    with part.open("ab") as stream:
        stream.write('{"id": "b", "rationale": "A bear in the sn\u00f6'.encode()[:-1])

    store = open_store(path)
    assert store.missing("ab") == ["b"]
    store.append(0, [record("b")])
    assert open_store(path).texts() == {n: record(n)["rationale"] for n in "ab"}
    assert len(part.read_text().splitlines()) == 2


def test_a_merge_killed_before_the_parts_were_removed(path: Path) -> None:
    store = open_store(path)
    store.append(0, [record("a"), record("b")])
    part = path.with_name(f"{path.name}.part0")
    kept = part.read_bytes()
    store.merge("ab")
    part.write_bytes(kept)

    again = open_store(path)
    assert again.missing("ab") == []
    again.append(0, [record("c")])
    again.merge("abc")
    assert len(path.read_text().splitlines()) == 3


def test_the_file_may_be_edited_by_hand(path: Path) -> None:
    store = open_store(path)
    store.append(0, [record("a")])
    store.merge("a")
    path.write_text(json.dumps(record("a", "Mended.") | ABOUT["a"]))  # no line break at the end

    assert open_store(path).texts() == {"a": "Mended."}


def test_two_runs_at_a_time(path: Path) -> None:
    one, other = open_store(path), open_store(path)
    one.append(0, [record("a")])
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"Another run is writing rationales to {path}. Wait until it has ended and start this "
            "one again; it will use what is there."
        ),
    ):
        other.append(0, [record("a", "Something else.")])


def test_parts_that_contradict(path: Path) -> None:
    one, other = open_store(path), open_store(path)
    one.append(0, [record("a")])
    other.append(1, [record("a", "Something else.")])
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"Rationale file {path}.part1 has another rationale for the clip a than {path} or its "
            f"other parts: two runs wrote at the same time. Remove {path}.part1."
        ),
    ):
        open_store(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b", "ratio', ' is no JSON: \'{"id": "b", "ratio\'. Mend or remove the line.'),
        ("", " is no JSON: ''. Mend or remove the line."),
        (
            "[1]",
            " must be a JSON object with id (str), rationale (str), finish (str), tokens (int), "
            "source (str); got [1].",
        ),
        (
            '{"id": "b", "rationale": "x", "finish": "stop", "source": "self"}',
            " must have id (str), rationale (str), finish (str), tokens (int), source (str); "
            "tokens is None.",
        ),
        (
            json.dumps(record("b") | {"id": 7}),
            " must have id (str), rationale (str), finish (str), tokens (int), source (str); "
            "id is 7.",
        ),
        (
            json.dumps(record("a") | ABOUT["a"]),
            " has a second rationale for the clip a. Remove one of the two lines.",
        ),
    ],
)
def test_damaged_lines(path: Path, line: str, message: str) -> None:
    store = open_store(path)
    store.append(0, [record("a")])
    store.merge("a")
    path.write_text(path.read_text() + line + "\n" + json.dumps(record("c")) + "\n")
    with pytest.raises(ValueError, match=re.escape(f"Rationale file {path}, line 2{message}")):
        open_store(path)


def test_bytes_that_are_no_text(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(json.dumps(record("a")).encode().replace(b"bear", b"b\xe4r") + b"\n")
    with pytest.raises(ValueError, match=r"line 1 is no JSON: .* Mend or remove the line\.$"):
        open_store(path)


def test_another_provenance(path: Path) -> None:
    sidecar = "smarthome-qwen-rationale.provenance.json"
    open_store(path).append(0, [record("a")])
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"Rationale file {path} was made from something else than this run asks for:\n"
            "  frames.fps: 1.0 in the file, 2.0 now\n"
            '  prompt: "Describe the clip." in the file, "What is wrong in the clip?" now\n'
            "  seed: null in the file, 0 now\n"
            f"Set data.rationale_file to another file, or remove this one and {sidecar} to have it "
            "written anew."
        ),
    ):
        open_store(
            path,
            prompt="What is wrong in the clip?",
            frames={"fps": 2.0, "max_pixels": 151200},
            seed=0,
        )


def test_other_versions_are_only_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_store(path).append(0, [record("a")])
    with caplog.at_level(logging.INFO):
        store = open_store(path, versions={"torch": "2.16"})
    assert store.missing("a") == []
    assert caplog.messages == [
        f'Rationale file {path} was written with versions.torch "2.15", now "2.16".'
    ]


def test_a_file_without_provenance(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps(record("a") | ABOUT["a"] | {"source": "human"}) + "\n")
    assert open_store(path).missing("a") == []
    assert caplog.messages == [
        f"Rationale file {path} has no smarthome-qwen-rationale.provenance.json beside it, so rbft "
        "cannot tell what it was made from; it is used as it is."
    ]


def test_a_damaged_provenance(path: Path) -> None:
    open_store(path).append(0, [record("a")])
    sidecar = path.with_suffix(".provenance.json")
    sidecar.write_text("{")
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"{sidecar} is no JSON. Remove it if you know what smarthome-qwen-rationale.jsonl was "
            "made from, or remove both to have the rationales written anew."
        ),
    ):
        open_store(path)


def test_names_with_characters_that_globs_know(tmp_path: Path) -> None:
    path = tmp_path / "a[b]*.jsonl"
    open_store(path).append(0, [record("a")])
    assert open_store(path).missing("a") == []


def test_each_line_says_what_it_is_about(path: Path) -> None:
    open_store(path).append(0, [record("a")])
    (line,) = path.with_name(f"{path.name}.part0").read_text().splitlines()
    assert json.loads(line) == record("a") | {
        "video": "video a",
        "start": None,
        "end": None,
        # echo -n "Describe the clip." | sha256sum | head -c 16
        "prompt": "9461f585ebe0380f",
    }


@pytest.mark.parametrize(
    "other",
    [
        about("video of another folder", None, None, "Describe the clip."),
        about("video a", 1.0, None, "Describe the clip."),
        about("video a", None, 4.0, "Describe the clip."),
        about("video a", None, None, "Describe the clip. Its title: A bear."),
    ],
)
def test_another_clip_of_the_same_id_has_a_rationale_of_its_own(
    path: Path, other: dict[str, Any]
) -> None:
    """Another folder of videos, another segment or another text of the clip."""
    first = open_store(path)
    first.append(0, [record("a", "The first."), record("b")])
    first.merge("ab")

    second = open_store(path, ABOUT | {"a": other})
    assert second.missing("ab") == ["a"]
    assert second.texts() == {"b": "Clip b shows a bear."}
    second.append(0, [record("a", "The second.")])
    second.merge("ab")

    assert open_store(path).texts()["a"] == "The first."
    assert open_store(path, ABOUT | {"a": other}).texts()["a"] == "The second."
    assert len(path.read_text().splitlines()) == 3


def test_lines_of_clips_that_are_not_asked_for_do_not_count(path: Path) -> None:
    """Such as those of test clips, whoever wrote the file."""
    store = open_store(path)
    store.append(0, [record("a"), record("b"), record("z")])
    store.merge("ab")
    training = open_store(path, {name: ABOUT[name] for name in "ab"})
    assert sorted(training.texts()) == ["a", "b"]
    assert training.undecodable() == set()
    training.merge("ba")
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == list("baz")


def test_lines_that_do_not_say_what_they_are_about(path: Path) -> None:
    """A file of the user's own; in one that rbft named, such a line is no proof."""
    path.parent.mkdir()
    lines = [record("a", "By id."), record("z", "Foreign."), record("b") | ABOUT["b"]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    clips = {name: ABOUT[name] for name in "abc"}
    assert open_store(path, clips).missing("abc") == ["a", "c"]
    store = open_store(path, clips, by_id=True)
    assert store.missing("abc") == ["c"]
    assert store.texts()["a"] == "By id."
    assert store.unproven == ["a"]
    # A line that says so wins over one that does not.
    path.write_text(path.read_text() + json.dumps(record("a", "Proven.") | ABOUT["a"]) + "\n")
    store = open_store(path, clips, by_id=True)
    assert (store.texts()["a"], store.unproven) == ("Proven.", [])


def drawn(name: str, *texts: str) -> list[dict[str, Any]]:
    """The samples of a clip, from number 0."""
    return [record(name, text) | {"sample": number} for number, text in enumerate(texts)]


DRAWN = [
    *drawn("a", "A dog naps.", "A bear climbs a tree.", "A bear climbs."),
    *drawn("b", "One.", "Two.", "Three."),
]


def numbers(path: Path) -> list[tuple[str, int]]:
    lines = map(json.loads, path.read_text().splitlines())
    return [(line["id"], line["sample"]) for line in lines]


def test_several_rationales_of_a_clip(path: Path) -> None:
    store = open_store(path, samples=3)
    store.append(0, DRAWN)
    for known in (store, open_store(path, samples=3)):
        assert known.missing("abc") == ["c"]
        assert known.texts() == {"a": "A dog naps.", "b": "One."}
        assert [(one["id"], one["sample"]) for one in known.all_records()] == [
            (name, number) for name in "ab" for number in range(3)
        ]
    store.merge("ba")
    assert numbers(path) == [(name, number) for name in "ba" for number in range(3)]
    chosen = open_store(path, samples=3, selection="consistent")
    assert chosen.texts()["a"] == "A bear climbs."
    assert chosen.records["a"]["sample"] == 2


def test_how_the_rationale_that_is_used_ended(path: Path) -> None:
    store = open_store(path, samples=3, selection="consistent")
    store.append(0, [one | {"finish": "length"} if one["sample"] == 2 else one for one in DRAWN])
    assert store.cut() == {"a"}
    assert open_store(path, samples=3).cut() == set()


def test_a_clip_that_lacks_a_sample_counts_as_missing(path: Path) -> None:
    """It is drawn again as a whole; what is there stays, and no line is written twice."""
    store = open_store(path, samples=3)
    store.append(0, DRAWN[:4])
    assert store.missing("ab") == ["b"]
    assert set(store.texts()) == {"a"}
    assert {one["id"] for one in store.all_records()} == {"a"}
    store.append(0, drawn("b", "Another.", "Two.", "Three."))
    assert store.missing("ab") == []
    store.merge("ab")
    assert [json.loads(line)["rationale"] for line in path.read_text().splitlines()][3:] == [
        "One.",
        "Two.",
        "Three.",
    ]
    assert open_store(path, samples=3).missing("ab") == []


def test_a_clip_whose_last_sample_was_cut_off_by_a_kill(path: Path) -> None:
    store = open_store(path, samples=3)
    store.append(0, DRAWN)
    part = path.with_name(f"{path.name}.part0")
    whole = part.read_bytes()
    part.write_bytes(whole[:-20])
    again = open_store(path, samples=3)
    assert again.missing("ab") == ["b"]
    again.append(0, DRAWN[3:])
    assert part.read_bytes() == whole


def test_more_or_fewer_samples_than_there_are(path: Path) -> None:
    """The same draws: a file of three serves two, and goes on to four."""
    open_store(path, samples=3).append(0, DRAWN)
    fewer = open_store(path, samples=2, selection="consistent")
    assert fewer.missing("ab") == []
    assert {one["sample"] for one in fewer.all_records()} == {0, 1}
    assert fewer.texts()["a"] == "A dog naps."  # one of two that are as like each other
    fewer.merge("ab")
    assert len(numbers(path)) == 6
    more = open_store(path, samples=4)
    assert more.missing("ab") == ["a", "b"]
    assert more.texts() == {}
    more.append(0, drawn("a", "x", "x", "x", "The fourth."))
    more.merge("ab")
    assert numbers(path)[:4] == [("a", number) for number in range(4)]
    assert open_store(path, samples=4).texts() == {"a": "A dog naps."}


def test_a_line_without_a_number_is_the_first(path: Path) -> None:
    open_store(path).append(0, [record("a")])
    store = open_store(path, samples=2)
    assert store.missing("a") == ["a"]
    store.append(0, drawn("a", "Another first.", "The second."))
    assert store.texts() == {"a": "Clip a shows a bear."}
    assert open_store(path, samples=2).missing("a") == []


def test_what_cannot_be_decoded_has_one_line(path: Path) -> None:
    store = open_store(path, samples=3)
    lost = {"rationale": "", "finish": "undecodable", "tokens": 0, "sample": 0}
    store.append(0, [record("a") | lost, *DRAWN[3:]])
    assert store.missing("ab") == []
    assert store.undecodable() == {"a"}
    assert set(store.texts()) == {"b"}


def test_samples_that_do_not_say_what_they_are_about(path: Path) -> None:
    path.parent.mkdir()
    lines = [*drawn("a", "One.", "Two."), *drawn("b", "x", "y", "z"), record("c")]
    lines += [one | ABOUT["b"] for one in drawn("b", "By content.")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    store = open_store(path, by_id=True, samples=2)
    assert store.unproven == ["a", "c"]
    assert store.missing("abc") == ["b", "c"]  # lines by id do not fill up those by content
    assert store.texts() == {"a": "One."}
    assert len(store.others) == 3
    assert open_store(path, samples=2).missing("abc") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            record("a") | {"sample": 1} | ABOUT["a"],
            " has a second rationale for the clip a, sample 1. Remove one of the two lines.",
        ),
        (
            record("a") | {"sample": -1},
            " must have a sample of 0 or more (int), or none; got -1.",
        ),
        (
            record("a") | {"sample": True},
            " must have a sample of 0 or more (int), or none; got True.",
        ),
    ],
)
def test_damaged_numbers(path: Path, line: dict[str, Any], message: str) -> None:
    store = open_store(path, samples=3)
    store.append(0, DRAWN[:3])
    store.merge("a")
    path.write_text(path.read_text() + json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=re.escape(f"Rationale file {path}, line 4{message}")):
        open_store(path, samples=3)


def test_parts_that_contradict_in_a_sample(path: Path) -> None:
    one, other = open_store(path, samples=2), open_store(path, samples=2)
    one.append(0, drawn("a", "One.", "Two."))
    other.append(1, drawn("a", "One.", "Else."))
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"Rationale file {path}.part1 has another rationale for the clip a, sample 1"
        ),
    ):
        open_store(path, samples=2)


@given(
    count=st.integers(1, 60), ratio=st.floats(0, 1), more=st.floats(0, 1), seed=st.integers(0, 3)
)
def test_mix(count: int, ratio: float, more: float, seed: int) -> None:
    ids = [f"clip {number}" for number in range(count)]
    own, human = dict.fromkeys(ids, "own"), dict.fromkeys(ids, "human")

    mixed = mix(own, human, ratio, ids, seed)
    assert list(mixed) == ids
    chosen = {name for name in ids if mixed[name] == "own"}
    assert len(chosen) == round(ratio * count)
    assert mix(own, human, ratio, ids[::-1], seed) == mixed
    larger = mix(own, human, max(ratio, more), ids, seed)
    assert chosen <= {name for name in ids if larger[name] == "own"}


def test_mix_depends_on_the_seed() -> None:
    ids = [str(number) for number in range(40)]
    own, human = dict.fromkeys(ids, "own"), dict.fromkeys(ids, "human")
    assert mix(own, human, 0.5, ids, 0) != mix(own, human, 0.5, ids, 1)


def test_mix_takes_only_what_it_needs() -> None:
    assert mix({"a": "own"}, {}, 1.0, ["a"], 0) == {"a": "own"}
    assert mix({}, {"a": "human"}, 0.0, ["a"], 0) == {"a": "human"}


def test_mix_without_references() -> None:
    own = dict.fromkeys("abcd", "own")
    with pytest.raises(
        ValueError,
        match=re.escape(
            "No human rationale for 3 of the 4 clips that should take one (first: b). Set "
            "data.rationale_ratio to 1.0, or add the references to the annotations."
        ),
    ):
        mix(own, {"a": "human"}, 0.0, list("abcd"), 0)


def test_mix_without_self_generated_ones() -> None:
    with pytest.raises(
        ValueError,
        match=re.escape(
            "No self-generated rationale for 1 of the 1 clips that should take one (first: a). Run "
            "python -m rbft rationalize with the same settings."
        ),
    ):
        mix({}, {}, 1.0, ["a"], 0)


class StoreMachine(RuleBasedStateMachine):
    """Writes by two processes, kills, restarts and merges in any order lose and repeat nothing."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "x.jsonl"
        self.written: dict[str, str] = {}
        self.restart()

    @rule()
    def restart(self) -> None:
        self.stores = [open_store(self.path) for _ in range(2)]

    @rule(rank=st.integers(0, 1), count=st.integers(1, 3), text=st.text(max_size=8))
    def append(self, rank: int, count: int, text: str) -> None:
        records = self._todo(rank, count, text)
        self.stores[rank].append(rank, records)
        self.written |= {r["id"]: r["rationale"] for r in records}

    @rule(rank=st.integers(0, 1), data=st.data(), text=st.text(max_size=8))
    def killed_while_appending(self, rank: int, data: st.DataObject, text: str) -> None:
        records = self._todo(rank, 3, text)
        self.stores[rank].append(rank, records)
        lines = "".join(json_line(r | ABOUT[r["id"]]) for r in records).encode()
        kept = data.draw(st.integers(0, len(lines)))
        part = self.path.with_name(f"x.jsonl.part{rank}")
        if records:
            assert part.read_bytes().endswith(lines)
            with part.open("rb+") as stream:
                stream.truncate(part.stat().st_size - len(lines) + kept)
        whole = lines[:kept].count(b"\n")
        self.written |= {r["id"]: r["rationale"] for r in records[:whole]}
        self.restart()

    @rule()
    def merge(self) -> None:
        self.stores[0].merge(CLIPS)
        self.restart()
        names = [json.loads(line)["id"] for line in self.path.read_bytes().split(b"\n")[:-1]]
        assert names == [name for name in CLIPS if name in self.written]

    @rule()
    def killed_while_merging(self) -> None:
        parts = {file: file.read_bytes() for file in self.path.parent.glob("*.part*")}
        self.stores[0].merge(CLIPS)
        for file, content in parts.items():
            file.write_bytes(content)
        self.restart()

    @precondition(lambda self: hasattr(self, "written"))
    @invariant()
    def nothing_lost(self) -> None:
        store = open_store(self.path)
        assert store.texts() == self.written
        assert store.missing(CLIPS) == [name for name in CLIPS if name not in self.written]

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def _todo(self, rank: int, count: int, text: str) -> list[dict[str, Any]]:
        mine = self.stores[rank].missing(CLIPS[rank::2])[:count]
        return [record(name, f"{name} {text}") for name in mine]


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=40,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
