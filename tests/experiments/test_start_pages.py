"""The pages to start from: each of their commands is one that the program takes."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from rbft import api
from rbft.card import Card
from rbft.cli import RBFTCLI, _Parsed, _run
from rbft.commands import EXPERIMENT
from rbft.commands.overview import in_full
from rbft.miniature import folders
from rbft.runtime.files import write_text
from rbft.stages import LABEL
from tests.recipe.runs import LOGS, ROOT, command_blocks, rbft
from tests.weights import adapter, whole_weights

PAGES = ("own_clips", "reproduce", "review", "serving")
TEXTS = {name: (ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in PAGES}
START = 45  # lines up to which a page has said how to start
# Other programs. What podman and pip are told is in test_environment.py, a server's options below.
OTHERS = ("pip install", "podman", "vllm serve", "curl")


def lines(page: str) -> list[str]:
    """The commands of a page in order, each on one line."""
    joined = "".join(command_blocks(TEXTS[page])).replace("\\\n", " ").splitlines()
    # Behind a curl stands what it sends.
    starts = [line for line in joined if re.match(r"[a-z]+ ", line)]
    return [re.sub(r" +", " ", line) for line in starts]


def commands(page: str) -> list[list[str]]:
    """Those of `python -m rbft` and of the container, without the words before them."""
    found = [re.match(r"(?:python -m|podman run .*) rbft (.*)", line) for line in lines(page)]
    return [shlex.split(one[1]) for one in found if one is not None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, backbones: dict[str, Path]) -> Path:
    """Where the pages begin: clips of one's own in folders, what `init` makes of them, two runs."""
    made = tmp_path_factory.mktemp("pages")
    folders.main(["--output", str(made / "videos"), "--train", "4", "--test", "2"])
    (init,) = (args for args in commands("own_clips") if args[0] == "init")
    rbft(made, *in_full(init))
    for name in ("house_experiment", "smarthome_qwen25"):
        whole_weights(made / LOGS / name / "label/weights", backbones["qwen2_5_vl"])
        write_text(made / LOGS / name / "settings.yaml", "stages: [label]\n")
    for name in ("yard", "hall"):
        adapter(made / LOGS / name / "label/weights", backbones["qwen2_5_vl"])
    return made


def parsed(monkeypatch: pytest.MonkeyPatch, args: list[str]) -> Any:
    """The settings of a command line, each checked by the parser that the program has."""
    only = {args[0]: {EXPERIMENT}}
    monkeypatch.setattr(RBFTCLI, "subcommands", staticmethod(lambda: only))
    return _run(in_full(args), _Parsed).settings


@pytest.mark.parametrize("page", PAGES)
def test_the_program_takes_each_command(
    page: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["rbft"])
    found = commands(page)
    assert len(found) >= 2
    for args in found:
        with pytest.MonkeyPatch.context() as patch:
            settings = parsed(patch, args)
        for value in vars(settings).get("configs") or ():
            assert (ROOT / str(value)).is_file(), value


@pytest.mark.parametrize("page", PAGES)
def test_no_command_is_left_out(page: str) -> None:
    for line in lines(page):
        if line.startswith("python -m rbft "):
            continue
        if line.startswith("python "):
            assert (ROOT / line.split()[1]).is_file(), line
        elif line.startswith("pytest "):
            assert (ROOT / line.split()[1]).is_dir(), line
        else:
            assert line.startswith(OTHERS), line


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_at_once_how_to_start_and_leads_on(page: str) -> None:
    head = "\n".join(TEXTS[page].splitlines()[:START])
    assert "```\npython -m rbft " in head or "```\npip install " in head
    assert len(set(re.findall(r"\]\((\w+\.md)", TEXTS[page]))) >= 2


def test_the_card_of_clips_with_several_classes_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(name: .*?)```", TEXTS["own_clips"], re.S)
    content = yaml.safe_load(text)
    answers = {"yes": content["several"][True], "no": content["several"][False]}
    card = Card(**{**content, "several": answers})
    assert LABEL.questions(card) == 3
    assert card.prompt("label", word=card.words["pet"]) == (
        "Does the clip show a cat or a dog? Answer yes or no."
    )


def test_the_dry_run_of_ones_own_clips_says_whether_they_fit(
    folder: Path, qwen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dry,) = (args for args in commands("own_clips") if "--dry_run" in args)
    tiny = [f"--model.backbone={qwen}", "--data.num_workers=0", "--name=fresh"]
    rbft(folder, *in_full(dry), *tiny)
    out = capsys.readouterr().out
    assert "Dry run of fresh" in out
    assert "24" in re.findall(r"a GPU of (\d+)", out)
    assert not (folder / LOGS / "fresh").exists()


def test_the_python_of_the_serving_page_is_that_of_the_package() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXTS["serving"], re.S)
    said: list[Any] = []

    class Answer:
        label, probabilities, rationale = "normal", {"normal": 1.0}, "A dog."

    class Model:
        def predict(self, video: str, *, rationale: bool) -> Answer:
            said.append((video, rationale))
            return Answer()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "load", lambda folder: said.append(folder) or Model())
        exec(code, {})
    assert said == ["lightning_logs/smarthome_qwen25", ("clip.mp4", True)]


def test_what_the_server_is_told_is_what_training_showed_the_model() -> None:
    """The options of `vllm serve`, and the request, are JSON; frames are those of the defaults."""
    served = [shlex.split(line) for line in lines("serving") if line.startswith("vllm serve")]
    own = yaml.safe_load((ROOT / "rbft/defaults.yaml").read_text(encoding="utf-8"))
    own = own["data"]["init_args"]
    for one in served:
        told = dict(pairwise(one))
        frames = json.loads(told["--media-io-kwargs"])["video"]
        pixels = json.loads(told["--mm-processor-kwargs"])
        assert json.loads(told["--limit-mm-per-prompt"]) == {"video": 1, "image": 0}
        assert frames["fps"] == own["fps"]
        assert pixels == {name: own[name] for name in ("min_pixels", "max_pixels")}
    serve, several = served
    told = dict(pairwise(serve))
    (request,) = re.findall(r"-d '(.*?)'$", TEXTS["serving"], re.M | re.S)
    asked = json.loads(request)
    args, together = (args for args in commands("serving") if args[0] == "export")
    output, names = together[together.index("--output") + 1], ("yard", "hall")
    assert several[2] == f"{output}/base"
    modules = [f"{name}={output}/{name}" for name in names]
    assert several[several.index("--lora-modules") + 1 :][:2] == modules
    assert together[2:4] == [f"{name}=lightning_logs/{name}" for name in names]
    assert asked["model"] == serve[2] == args[args.index("--output") + 1]
    video, text = asked["messages"][0]["content"]
    assert (video["type"], text["type"]) == ("video_url", "text")
    allowed = told["--allowed-local-media-path"]
    assert video["video_url"]["url"].startswith(f"file://{allowed}/")
