"""Folders like those that runs leave, made up: nothing is trained, and no torch is needed.

`write_logs` makes what the report can show: the paper's methods on SmartHome over seeds, a run on
other clips, one that is not finished, one that is damaged, masked frames, attention maps, and texts
that try to run scripts.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import (
    Summary,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from rbft.analysis.calibration import calibration
from rbft.analysis.intervals import Cells, for_results, score_intervals
from rbft.analysis.scored import ScoredClips
from rbft.runs.folder import digest
from rbft.runtime.digests import hash_file, identity, sample_digest

CLASSES = ("normal", "abnormal")
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='x'\">"
PAPER = {"fps": 1.0, "max_pixels": 151200, "min_pixels": 100352, "min_frames": 4}
BACKBONES = {
    "qwen2": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen25": "Qwen/Qwen2.5-VL-7B-Instruct",
}


def settings(name: str, stages: Sequence[str], seed: int = 0, **more: Any) -> dict[str, Any]:
    """Settings of a run on SmartHome as the paper has them; `more` by dotted name with `__`."""
    made: dict[str, Any] = {
        "seed_everything": seed,
        "name": name,
        "stages": list(stages),
        "trainer": {"max_epochs": 1, "gradient_clip_val": 1.0, "devices": 1},
        "model": {
            "backbone": BACKBONES["qwen25"],
            "learning_rate": 1e-5,
            "merger_learning_rate": 1e-5,
            "vision_learning_rate": 2e-6,
            "weight_decay": 0.1,
            "warmup_ratio": 0.03,
            "answer": "score",
            "lora": None,
            "quantize": None,
        },
        "data": {
            "class_path": "rbft.data.smarthome.SmartHome",
            "init_args": {
                **PAPER,
                "max_frames": 768,
                "global_batch_size": 16,
                "rationale_ratio": 1.0,
                "rationale_prompt": "rationale",
                "seed": seed,
                "num_workers": 2,
            },
        },
    }
    for dotted, value in more.items():
        *parents, last = dotted.split("__")
        place = made
        for parent in parents:
            place = place[parent]
        place[last] = value
    return made


def answers(
    count: int, right: float, seed: int, first: int = 0, names: Mapping[int, str] | None = None
) -> list[dict[str, Any]]:
    """Rows of predictions: so large a share of them right, with probabilities."""
    drawn = np.random.default_rng(seed)
    rows = []
    for number in range(first, first + count):
        label = CLASSES[number % 3 > 0]
        correct = drawn.random() < right
        other = CLASSES[1 - CLASSES.index(label)]
        prediction = label if correct else other
        sure = round(0.5 + 0.5 * float(drawn.random()), 6)
        shares = {prediction: sure, (other if correct else label): round(1 - sure, 6)}
        name = (names or {}).get(number, f"clip_{number:04d}.mp4")
        rows.append(
            {
                "id": name,
                "label": label,
                "prediction": prediction,
                "probabilities": {one: shares[one] for one in CLASSES},
            }
        )
    return rows


def write_result(
    file: Path, rows: Sequence[Mapping[str, Any]], made: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """Writes results and predictions as a scored split leaves them; returns the results."""
    split = file.stem.split("-")[0]
    scored = ScoredClips.from_rows(rows, CLASSES, split, "made up")
    confusion = scored.confusion
    cells = Cells(np.ones(len(rows), dtype=int), scored.labels, len(CLASSES))
    (scores,) = cells.scores(scored.predictions).tolist()
    names = ["accuracy", *(f"f1/{one}" for one in CLASSES), "f1/macro"]
    counts = {one: sum(row["label"] == one for row in rows) for one in CLASSES}
    content = {
        "run": file.parts[-3],
        "stage": file.parts[-2],
        "weights": "made up",
        "made": dict(made),
        "split": split,
        "n_expected": len(rows),
        "n_available": len(rows),
        "n_scored": len(rows),
        "n_unparsed": sum(row["prediction"] is None for row in rows),
        "n_ties": 0,
        "n_undecodable": 0,
        "undecodable": [],
        "classes": counts,
        "macro_classes": list(CLASSES),
        "ids": digest([row["id"] for row in rows]),
        "coverage": sum(row["prediction"] is not None for row in rows) / len(rows),
        "metrics": {
            **dict(zip(names, scores, strict=True)),
            "unparsed": 0.0,
            "majority": max(counts.values()) / len(rows),
            "n": float(len(rows)),
        },
        "intervals": for_results(score_intervals(confusion, CLASSES)),
        "calibration": calibration(scored).as_dict() if "probabilities" in rows[0] else None,
        "confusion": confusion.tolist(),
        **more,
    }
    write(file, json.dumps(content))
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    write(file.with_name(f"{file.stem}_predictions.jsonl"), lines)
    return content


def made(weights: str = "w", **more: Any) -> dict[str, Any]:
    """What determines results, as `rbft.inputs` notes it."""
    return {
        "frames": dict(PAPER),
        "answer": "score",
        "max_new_tokens": 1024,
        "quantize": None,
        "precision": "bf16-mixed",
        "card": "c0ffee",
        "stage": "label",
        "weights": weights,
        "clips": "abc",
        **more,
    }


def write_curves(folder: Path, curves: Mapping[str, Sequence[tuple[int, float]]]) -> Path:
    """Writes an event file with scalars; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob("events*"))
    writer = EventFileWriter(str(folder), filename_suffix=f".{len(before)}")
    for tag, points in curves.items():
        for step, value in points:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Event(step=step, wall_time=1000.0 + step, summary=summary))
    writer.close()
    (file,) = set(folder.glob("events*")) - before
    return file


def write_stage(folder: Path, steps: int = 49, **more: Any) -> None:
    """What a trained stage leaves, without its weights."""
    note = {"steps": steps, "epochs": 1, "clips_seen": 778, **more}
    write(folder / "weights/rbft.json", json.dumps(note))
    points = [(step, 2 * 0.93**step + 0.05) for step in range(1, steps, 5)]
    write_curves(folder, {"train/loss": points, "train/grad_norm": points})


def write_run(
    logs: Path,
    given: dict[str, Any],
    rows: Sequence[Mapping[str, Any]],
    zero_shot: Sequence[Mapping[str, Any]] | None = None,
    **more: Any,
) -> Path:
    """A finished run; returns its folder."""
    folder = logs / given["name"]
    write(folder / "settings.yaml", yaml.safe_dump(given, sort_keys=False))
    for stage in given["stages"]:
        tokens = {"rationale_tokens": 123456} if stage == "rationale" else {}
        write_stage(folder / stage, **tokens)
    if zero_shot is not None:
        write_result(folder / "zero_shot/test.json", zero_shot, made("bare", **more))
    place = given["stages"][-1] if given["stages"] else "zero_shot"
    write_result(folder / place / "test.json", rows, made(given["name"], **more))
    spent = {"seconds": 5400.0, "processor_seconds": 9000.0, "gpu_seconds": 5400.0}
    memory = {"memory_bytes": 12.5 * 2**30, "gpu_memory_bytes": 61.2 * 2**30}
    write(folder / "usage/1-a.json", json.dumps({"training": {**spent, **memory}}))
    return folder


def write(file: Path, text: str) -> None:
    """Writes a file and the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def write_masked(folder: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Results with masked frames beside a run's own: "objects", "random0", "random1"."""
    for name, answered in rows.items():
        kind = name.rstrip("0123456789")
        repeat = int(name[len(kind) :]) if name != kind else None
        masking = {"kind": kind, "boxes": "b0", "fill": "constant"}
        masking |= {} if repeat is None else {"repeat": repeat, "seed": 0}
        noted = made(folder.name, masking=masking)
        more = {**masking, "area": 0.083, "overlap": 1.0 if repeat is None else 0.0}
        file = folder / f"label/test-{name}-0a1b2c3d.json"
        write_result(file, answered, noted, masking=more)


def write_attention(folder: Path, runs: Sequence[str], clip: str) -> None:
    """What `attention` leaves about one clip."""
    strips = {}
    for number, run in enumerate(runs):
        strips[run] = f"strips/{number}.png"
        (folder / "strips").mkdir(parents=True, exist_ok=True)
        ramp = np.linspace(0, 255, 640, dtype=np.uint8)
        picture = np.stack([np.tile(ramp, (80, 1)), np.full((80, 640), 80 * number)], axis=2)
        whole = np.dstack([picture, np.full((80, 640), 120)]).astype(np.uint8)
        Image.fromarray(whole).save(folder / strips[run])
    figure = {"mean": 2.25, "interval": {"low": 1.5, "high": 3.0}, "n": 1}
    apart = {"mean": 0.5, "interval": {"low": -0.25, "high": 1.25}, "n": 1}
    content = {
        "runs": list(runs),
        "map": "Attention of the prompt's last token.",
        "meaning": {"lift": "share of the map in boxes / share of the area (1: uniform)"},
        "clips": [
            {
                "id": clip,
                "label": "abnormal",
                "strips": strips,
                "scores": {run: {"lift": 2.25} for run in runs},
            }
        ],
        "scores": {run: {"lift": figure} for run in runs},
        "differences": [{"a": runs[1], "b": runs[0], "scores": {"lift": apart}}],
    }
    write(folder / "attention.json", json.dumps(content))


def write_logs(logs: Path, seeds: int = 2) -> Path:
    """All of it; returns the folder."""
    names = {5: f"<b>{EVIL}.mp4"}
    zero = answers(196, 0.55, 1, names=names)
    for seed in range(1, seeds + 1):
        direct = settings(f"smarthome_qwen25_direct_seed{seed}", ["label"], seed)
        write_run(logs, direct, answers(196, 0.72, 10 + seed, names=names), zero)
        ours = settings(f"smarthome_qwen25_seed{seed}", ["rationale", "label"], seed)
        rows = answers(196, 0.83, 20 + seed, names=names)
        rows[5]["rationale"] = f"Subjects: a raccoon. {EVIL}"
        write_run(logs, ours, rows, zero)
    others = settings("smarthome_qwen25_less", ["rationale", "label"])
    others["data"]["init_args"]["rationale_prompt"] = "less"
    write_run(logs, others, answers(205, 0.78, 31, first=40), clips="other")
    for method, stages, right in (("_direct", ["label"], 0.7), ("", ["rationale", "label"], 0.81)):
        given = settings(f"smarthome_qwen2{method}", stages, model__backbone=BACKBONES["qwen2"])
        folder = write_run(logs, given, answers(196, right, 41 + len(method)))
        masked = {"objects": answers(196, right - 0.12, 51)}
        masked |= {f"random{n}": answers(196, right - 0.05, 60 + n) for n in range(2)}
        write_masked(folder, masked)
    unfinished = settings("unfinished", ["rationale", "label"])
    write(logs / "unfinished/settings.yaml", yaml.safe_dump(unfinished))
    write_stage(logs / "unfinished/rationale")
    (logs / "unfinished/label/checkpoints/step=20.ckpt").mkdir(parents=True)
    folder = write_run(logs, settings("damaged", ["label"]), answers(196, 0.6, 71))
    write(folder / "label/test_predictions.jsonl", '{"id": "clip_0')
    runs = ["smarthome_qwen25_direct_seed1", "smarthome_qwen25_seed1"]
    write_attention(logs / "attention/bear", runs, f"bear {EVIL}")
    line = {"id": "clip_0001.mp4", "rationale": "A raccoon.", "finish": "stop", "tokens": 4}
    write(logs / "rationales/smarthome-x.jsonl", json.dumps({**line, "source": "self"}) + "\n")
    return logs


def write_video_of(logs: Path, clip: str, cache: Path) -> Path:
    """A video for a clip, noted in the clips of every run and in the digests of the cache."""
    from tests.videos import make_video  # takes torch

    (cache / "videos").mkdir(parents=True)
    file = make_video(cache / "videos/seen.mp4", 24, height=64, width=96)
    known = hash_file(file)
    size, changed, inode = identity(file.stat())
    note = {"path": str(file), "size": size, "mtime_ns": changed, "inode": inode}
    note |= {"sample": sample_digest(file), "digest": known, "check": "not looked at"}
    write(cache / "digests.jsonl", f"{json.dumps(note)}\n")
    content = {"test": [{"id": clip, "video": known, "start": None, "end": None}]}
    for folder in logs.glob("*/settings.yaml"):
        write(folder.parent / "clips.json", json.dumps(content))
    return file
