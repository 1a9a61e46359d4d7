"""Draws by hash; against transformers' warpers and `generate` see tests/parity."""

import hashlib
import math
import random
from collections import Counter

import pytest
import torch

from rbft.data.rationales import about
from rbft.inference.sampling import UNIT, Draw, RationaleSampling, text_key, uniform, weigh

CLIP = about("3f2a", 1.5, 4.0, "Describe the clip.")


def test_the_numbers_drawn_are_those_of_the_hash():
    """Files that are there are gone on with by the same draws in later versions."""
    # echo -n "Describe the clip." | sha256sum | head -c 16
    clip = '[["end", 4.0], ["prompt", "9461f585ebe0380f"], ["start", 1.5], ["video", "3f2a"]]'
    key = hashlib.sha256(f"[{clip}, 0, 2]".encode()).digest()
    assert text_key(CLIP, 0, 2) == key
    first = hashlib.sha256(key + bytes(7) + b"\x05").hexdigest()
    assert uniform(key, 5) == (int(first[:16], 16) >> 11) / 2**53


@pytest.mark.parametrize(
    "other",
    [
        text_key(about("3f2b", 1.5, 4.0, "Describe the clip."), 0, 0),
        text_key(about("3f2a", None, 4.0, "Describe the clip."), 0, 0),
        text_key(about("3f2a", 1.5, None, "Describe the clip."), 0, 0),
        text_key(about("3f2a", 1.5, 4.0, "What is done?"), 0, 0),
        text_key(CLIP, 1, 0),
        text_key(CLIP, 0, 1),
    ],
    ids=["video", "start", "end", "prompt", "seed", "sample"],
)
def test_all_that_a_text_is_about_counts(other):
    assert uniform(other, 0) != uniform(text_key(CLIP, 0, 0), 0)


def test_the_numbers_are_spread_evenly():
    numbers = [
        uniform(text_key(CLIP, 0, sample), place) for sample in range(50) for place in range(200)
    ]
    assert min(numbers) >= 0
    assert max(numbers) < 1
    tenths = Counter(int(10 * number) for number in numbers)
    # Each is binomial with mean 1000 and standard deviation 30.
    assert all(abs(tenths[tenth] - 1000) < 120 for tenth in range(10))
    # Neighbours, of one text and of two samples, do not follow each other.
    for lag in (1, 200):
        pairs = list(zip(numbers, numbers[lag:], strict=False))
        mean = sum((one - 0.5) * (other - 0.5) for one, other in pairs) / len(pairs)
        assert abs(12 * mean) < 4 / math.sqrt(len(pairs))


def test_tokens_are_drawn_as_often_as_they_are_probable():
    scores = torch.tensor([0.5, -2.0, 1.0, 0.0, -torch.inf])
    settings = RationaleSampling(temperature=0.7, seed=3)
    keys = [text_key(CLIP, settings.seed, sample) for sample in range(4000)]
    drawn = Draw(settings, keys)(scores.expand(len(keys), -1), range(len(keys)), 7).tolist()
    counts, expected = Counter(drawn), (scores / 0.7).softmax(-1).tolist()
    for token, share in enumerate(expected):
        spread = math.sqrt(len(keys) * share * (1 - share))
        assert abs(counts[token] - len(keys) * share) <= 4 * spread, token


def test_a_row_is_drawn_alone():
    """Neither other rows, nor their order, nor torch's generator count."""
    scores, settings = torch.randn(6, 50), RationaleSampling(temperature=1.3, top_p=0.9)
    draw = Draw(settings, [text_key(CLIP, 0, sample) for sample in range(6)])
    torch.manual_seed(1)
    random.seed(1)
    whole = draw(scores, range(6), 4).tolist()
    assert len(set(whole)) > 2
    torch.manual_seed(2)
    random.seed(2)
    for texts in ([0], [3], [5, 1], [4, 2, 0, 5, 3, 1]):
        assert draw(scores[texts], texts, 4).tolist() == [whole[text] for text in texts]
    assert draw(scores, range(6), 5).tolist() != whole


@pytest.mark.parametrize(
    ("share", "token"),
    # 0.5, 0.25 and 0.25 of tokens 0, 2 and 3; token 1 has nothing.
    [(0.0, 0), (0.49, 0), (0.5, 2), (0.74, 2), (0.75, 3), (1 - 2**-53, 3)],
)
def test_at_the_edges_of_a_token(monkeypatch, share, token):
    monkeypatch.setattr("rbft.inference.sampling.uniform", lambda key, position: share)
    weights = torch.tensor([[2, 0, 1, 1, 0]]) * (UNIT // 4)
    monkeypatch.setattr("rbft.inference.sampling.weigh", lambda scores, settings: weights)
    assert Draw(RationaleSampling(), [b""])(torch.zeros(1, 5), [0], 0).tolist() == [token]


def test_scores_that_are_not_finite_end_no_draw():
    """They are refused by name where the text is written; an index too large would end a GPU."""
    scores = torch.tensor([[0.0, torch.nan, 1.0], [torch.inf, 0.0, 0.0]])
    drawn = Draw(RationaleSampling(top_p=0.5, top_k=2), [b"a", b"b"])(scores, [0, 1], 0)
    assert ((drawn >= 0) & (drawn < 3)).all()
    only = torch.tensor([[torch.nan]])
    assert Draw(RationaleSampling(), [b"a"])(only, [0], 0).tolist() == [0]


def test_the_likeliest_token_always_stays():
    scores = torch.tensor([[1.0, 3.0, 2.0]])
    assert weigh(scores, RationaleSampling(top_p=1e-9)).nonzero().tolist() == [[0, 1]]
    assert weigh(scores, RationaleSampling(top_k=1)).tolist() == [[0, UNIT, 0]]
    assert (weigh(scores, RationaleSampling(top_k=9)) > 0).all()


def test_of_equal_scores_the_smaller_ids_go_first():
    assert weigh(torch.zeros(1, 4), RationaleSampling(top_p=0.4)).tolist() == [
        [0, 0, UNIT // 4, UNIT // 4]
    ]


def test_what_determines_a_text():
    many = RationaleSampling(temperature=0.7, top_p=0.8, top_k=20, samples=8, seed=5)
    assert many.determining == {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "seed": 5}
