"""The class behind a given rationale against one plain forward of the model per class word."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

from rbft.data.elicited import ElicitedClasses
from rbft.data.rationales import about
from rbft.eliciting_module import ElicitedWriter, ElicitingModule
from rbft.stages import STAGES
from tests.examples import CARD, collator, examples, module, trainer

QUESTION = STAGES["rationale_class"]
# Of several lengths, one empty; the second clip has one more than the others.
TEXTS = [["It climbs."], ["A bear walks in the yard at night.", ""], ["It climbs. "]]


def records(made: list[Any]) -> dict[str, list[dict[str, Any]]]:
    return {
        one.clip.id: [
            {"id": one.clip.id, "rationale": text, "sample": number}
            for number, text in enumerate(texts)
        ]
        for one, texts in zip(made, TEXTS, strict=True)
    }


def eliciting(folder: Path, made: list[Any], *, packing: bool) -> ElicitingModule:
    model = module(folder, "rationale_class")
    asking = ElicitingModule(model.loader, CARD, records(made), packing=packing)
    asking.backbone = model.backbone
    for parameter in asking.backbone.parameters():
        if parameter.dim() > 1:  # so that what stands before the class changes its probability
            parameter.data *= 3
    return asking.eval()


@torch.no_grad()
def probabilities(folder: Path, model: Any, one: Any, text: str) -> torch.Tensor:
    """By transformers' model alone: prompt, rationale, class word in one row, without a cache."""
    made = collator(folder, prompt_stage="rationale_class")
    batch = made([one])
    assert batch.prompt is not None
    tokenizer, prompt = made.processor.tokenizer, batch.prompt.input_ids[0].tolist()
    scores = []
    for word in CARD.words.values():
        behind = tokenizer(f"{text.strip()}\n", add_special_tokens=False)["input_ids"]
        answer = tokenizer(word, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        ids = torch.tensor([[*prompt, *behind, *answer]])
        start = batch.prompt.position_ids[:, 0]
        tail = start[:, -1:] + torch.arange(1, len(behind) + len(answer) + 1)
        logits = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=torch.cat([start, tail], dim=1)[:, None],
            use_cache=False,
            **batch.video,
        ).logits[0]
        nats = logits.log_softmax(-1)[-len(answer) - 1 : -1]
        scores.append(float(nats.gather(1, torch.tensor(answer)[:, None]).sum()))
    return torch.tensor(scores).softmax(0)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_probabilities_behind_given_rationales(
    backbone: Path, tmp_path: Path, packing: bool
) -> None:
    made = examples(3)
    asking = eliciting(backbone, made, packing=packing)
    batch = asking.collator(made)
    with torch.no_grad():
        outputs = asking.predict_step(batch)
    assert len(outputs) == 2
    known = {one.clip.id: about(one.clip.id, None, None, "Why?") for one in made}
    file = ElicitedClasses(tmp_path / "classes.jsonl", {}, known, CARD.classes)
    writer, worker = ElicitedWriter(file, records(made)), trainer(tmp_path)
    writer.on_predict_batch_end(worker, LightningModule(), outputs, batch, 0)
    assert len(file.found) == 4
    shares: list[float] = []
    for one in made:
        for record in records(made)[one.clip.id]:
            line = file.found[file._key(record)]
            expected = probabilities(backbone, asking.backbone, one, record["rationale"])
            found = torch.tensor(list(line["probabilities"].values()))
            torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
            assert all(abs(float(expected[0]) - other) > 1e-5 for other in shares)
            shares.append(float(expected[0]))
            assert line["elicited"] == CARD.classes[int(expected.argmax())]
            assert file.index(record) == int(expected.argmax())


def test_what_stands_behind_the_prompt_is_what_training_puts_there(qwen: Path) -> None:
    made = examples(3)
    asking = eliciting(qwen, made, packing=True).collator
    training = collator(qwen, target_stage="rationale_class")
    for one in made:
        text = records(made)[one.clip.id][0]["rationale"]
        assert one.clip.label is not None
        answer = asking.class_answers(QUESTION)[one.clip.label]
        asked = asking([one]).prompt
        row = training([replace(one, rationale=text)]).answer
        assert asked is not None
        assert row is not None
        behind = [*asking.part_ids(text.strip(), last=False), *answer]
        assert row.input_ids[0].tolist() == [*asked.input_ids[0].tolist(), *behind]
