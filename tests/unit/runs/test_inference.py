from jsonargparse import Namespace

from rbft.runs.inference import inference_note, inference_options
from rbft.runs.record import SCORING


def settings(**more):
    made = Namespace(
        {
            "data.init_args.fps": 2.0,
            "data.init_args.max_pixels": 3136,
            "data.init_args.reader": "decord",
            "model.packing": True,
            "model.answer": "generate",
            "trainer.precision": "bf16-mixed",
            "model.self_consistency": None,
        }
    )
    for name, value in more.items():
        made[name.replace("__", ".")] = value
    return made


def test_all_that_decides_a_score_is_noted():
    note = inference_note(settings(), None)
    decisive = {name.replace(".init_args", "") for names in SCORING.values() for name in names}
    assert decisive | {"model.self_consistency", "data.reader", "model.packing"} <= set(note)
    assert note["data.fps"] == 2.0
    assert note["data.num_frames"] is None


def test_a_note_becomes_options():
    assert inference_options(inference_note(settings(), None)) == [
        "--data.fps=2.0",
        "--data.max_pixels=3136",
        "--model.answer=generate",
        "--trainer.precision=bf16-mixed",
        "--data.reader=decord",
        "--model.packing=true",
    ]


def test_a_machine_s_own_precision_is_left_to_the_machine():
    assert inference_note(settings(), "bf16-mixed")["trainer.precision"] is None
    assert inference_note(settings(), "32-true")["trainer.precision"] == "bf16-mixed"
    own = settings(trainer__precision=None)
    assert inference_note(own, None)["trainer.precision"] is None


def test_nested_settings_are_plain():
    average = Namespace(samples=3, temperature=0.5)
    note = inference_note(settings(model__self_consistency=average), None)
    assert note["model.self_consistency"] == {"samples": 3, "temperature": 0.5}
    (option,) = (one for one in inference_options(note) if "consistency" in one)
    assert option == '--model.self_consistency={"samples": 3, "temperature": 0.5}'
