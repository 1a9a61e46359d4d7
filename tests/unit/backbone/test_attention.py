import inspect
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rbft.backbone import attention
from rbft.backbone.attention import (
    TEXT,
    VISION,
    attend,
    packed_inputs,
    text_attention,
    text_mask,
    use_segment_attention,
    vision_attention,
)
from tests.tiny import tiny_model

# The last has as many tokens as heads.
SEGMENTS = [(7,), (4, 4, 4), (3, 5, 9), (2, 6, 2, 1, 6), (1, 1), (1, 3)]


def heads(tokens: int, queries: int = 4, keys: int = 4) -> Any:
    """Queries, keys and values as the models hand them over: views of "tokens heads width"."""
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (
        torch.randn(tokens, count, 8, generator=generator, dtype=torch.float64)
        for count in (queries, keys, keys)
    )
    return [x.transpose(0, 1)[None] for x in (q, k, v)]


def by_mask(
    query: Tensor, key: Tensor, value: Tensor, segments: tuple[int, ...], causal: bool
) -> Tensor:
    """The textbook's attention with a mask over the whole row."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    of = torch.arange(len(segments)).repeat_interleave(torch.tensor(segments))
    seen = of[:, None] == of
    if causal:
        seen &= torch.ones_like(seen).tril()
    scores = (query @ key.mT * 0.3).masked_fill(~seen, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keys", [4, 2])
def test_segments_against_a_mask(segments: tuple[int, ...], causal: bool, keys: int) -> None:
    ours: Any = [x.requires_grad_() for x in heads(sum(segments), keys=keys)]
    theirs: Any = [x.detach().clone().requires_grad_() for x in ours]
    made = attend(*ours, segments=segments, scaling=0.3, dropout=0.0, causal=causal)
    expected = by_mask(*theirs, segments=segments, causal=causal)
    torch.testing.assert_close(made, expected)
    weights = torch.arange(made.numel(), dtype=torch.float64).view_as(made).sin()
    (made * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_nothing_is_computed_across_segments_and_equal_ones_go_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    sdpa = nn.functional.scaled_dot_product_attention

    def watched(query: Tensor, *args: Any, **settings: Any) -> Tensor:
        calls.append((tuple(query.shape), settings.get("attn_mask")))
        return sdpa(query, *args, **settings)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watched)
    attend(*heads(17), segments=(2, 6, 2, 1, 6), scaling=0.3, dropout=0.0, causal=True)
    assert calls == [((2, 4, 2, 8), None), ((2, 4, 6, 8), None), ((1, 4, 1, 8), None)]


def test_what_is_dropped_is_dropped() -> None:
    everything = attend(*heads(8), segments=(3, 5), scaling=0.3, dropout=1.0, causal=True)
    assert not everything.any()


def test_the_way_of_transformers_to_tell_packed_clips_apart() -> None:
    from transformers.masking_utils import find_packed_sequence_indices

    # Rotary positions repeat and jump within a clip: they could not tell.
    positions = torch.tensor([0, 1, 1, 1, 5, 0, 1, 1, 3, 0, 1]).expand(3, 1, -1)
    given = packed_inputs("sdpa", (5, 4, 2), positions)
    text, rotary = given["position_ids"][0], given["position_ids"][1:]
    assert torch.equal(rotary, positions)
    assert given["attention_mask"] is None
    found = find_packed_sequence_indices(text)
    assert found is not None
    assert found.tolist() == [[0] * 5 + [1] * 4 + [2] * 2]
    alone = packed_inputs("sdpa", (11,), positions)
    assert torch.equal(alone["position_ids"], positions)


# Arguments of torch's kernel by release, as far as they are used here.
BARE = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")
TORCH_2_10 = (*BARE, "is_causal", "return_aux")
TORCH_2_11 = (*BARE, "return_aux", "scale", "window_size")
TORCH_2_15 = (*TORCH_2_11, "enable_gqa", "seqused_k", "block_table", "num_splits")
TAKES = {"2.10": TORCH_2_10, "2.11": TORCH_2_11, "2.15": TORCH_2_15}


def install(monkeypatch: pytest.MonkeyPatch, kernel: Any) -> None:
    """Puts a kernel in the place of torch's, or none."""
    varlen: Any = None
    if kernel is not None:
        varlen = ModuleType("varlen")
        varlen.varlen_attn = kernel
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", varlen)
    # Looked up once in a process; here, in every test.
    monkeypatch.setattr(attention, "_varlen_attn", attention._varlen_attn.__wrapped__)


class Kernel:
    """Stands for torch's kernel, which needs a GPU: the same arguments, one segment at a time."""

    def __init__(self, release: str = "2.15") -> None:
        named = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in BARE
        ]
        parameters += [
            inspect.Parameter(name, named, default=None) for name in TAKES[release][len(BARE) :]
        ]
        self.__signature__ = inspect.Signature(parameters)
        self.calls = 0

    def __call__(self, *args: Any, **settings: Any) -> Tensor:
        given = self.__signature__.bind(*args, **settings).arguments
        self.calls += 1
        query, key, value = given["query"], given["key"], given["value"]
        assert query.is_contiguous()
        assert given["cu_seq_q"].dtype == torch.int32
        assert torch.equal(given["cu_seq_q"], given["cu_seq_k"])
        assert int(given["cu_seq_q"][0]) == 0
        assert int(given["cu_seq_q"][-1]) == len(query)
        lengths = given["cu_seq_q"].diff()
        assert given["max_q"] == given["max_k"] == int(lengths.max())
        causal = given["window_size"] == (-1, 0)
        assert causal or given["window_size"] == (-1, -1)
        if "enable_gqa" in self.__signature__.parameters:
            assert given["enable_gqa"] == (query.shape[1] != key.shape[1])
        rows: Any = [x.transpose(0, 1)[None] for x in (query, key, value)]
        assert given["scale"] == 0.3
        return by_mask(*rows, segments=tuple(lengths.tolist()), causal=causal)[0]


def test_the_stand_in_takes_what_the_kernel_takes() -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="no such kernel before 2.10")
    release = ".".join(torch.__version__.split(".")[:2])
    arguments = tuple(inspect.signature(varlen.varlen_attn).parameters)
    assert arguments[: len(BARE)] == BARE
    if release in TAKES:
        assert arguments == TAKES[release]


@pytest.mark.parametrize("release", ["2.11", "2.15"])
@pytest.mark.parametrize("segments", SEGMENTS)
def test_one_kernel_for_all_segments(
    segments: tuple[int, ...], release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(release)
    widths: list[int] = []
    monkeypatch.setattr(
        attention, "_kernel_dtype", lambda device, dtype, width: widths.append(width) or dtype
    )
    install(monkeypatch, kernel)
    given = heads(sum(segments), keys=2)
    made = attend(*given, segments=segments, scaling=0.3, dropout=0.0, causal=True)
    torch.testing.assert_close(made, by_mask(*given, segments=segments, causal=True))

    given, bounds = heads(sum(segments)), torch.tensor([0, *segments]).cumsum(0).int()
    made, _ = vision_attention(
        nn.Module(),
        *given,
        attention_mask=None,
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds,
        max_length_q=max(segments),
        max_length_k=max(segments),
        scaling=0.3,
        is_causal=False,
    )
    torch.testing.assert_close(made, by_mask(*given, segments=segments, causal=False))
    assert kernel.calls == 2
    assert widths == [8, 8]

    # It cannot drop anything.
    made = attend(*heads(sum(segments)), segments=segments, scaling=0.3, dropout=1.0, causal=True)
    assert not made.any()
    settings = {"attention_mask": None, "cu_seq_lens_q": bounds, "max_length_q": 9}
    made, _ = vision_attention(nn.Module(), *given, scaling=0.3, dropout=1.0, **settings)
    assert not made.any()
    assert kernel.calls == 2


@pytest.mark.parametrize("segments", [(), (9,), (4, 5), (2, 3, 4)])
def test_a_row_of_one_clip_goes_the_way_of_transformers(segments: tuple[int, ...]) -> None:
    module, (query, key, value) = nn.Module(), heads(9)
    module.is_causal = True  # type: ignore[assignment]
    settings = {"attend": attend, "segments": segments, "scaling": 0.3, "dropout": 0.0}
    made, _ = text_attention(module, query, key, value, None, **settings)
    torch.testing.assert_close(made, by_mask(query, key, value, segments or (9,), causal=True))


@pytest.mark.parametrize("gpu", [False, True])
def test_on_a_processor_windows_stay_apart(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, chosen = tiny_model("qwen2_5_vl"), []
    monkeypatch.setattr(model, "set_attn_implementation", chosen.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    use_segment_attention(model)
    assert chosen == [{"text_config": TEXT, **({"vision_config": VISION} if gpu else {})}]


@pytest.mark.parametrize(
    ("dtype", "width", "fits"),
    [
        (torch.bfloat16, 80, True),
        (torch.float16, 128, True),
        (torch.float32, 128, False),
        (torch.bfloat16, 256, True),
        (torch.bfloat16, 84, False),
        (torch.bfloat16, 264, False),
    ],
)
def test_where_the_kernel_runs(
    dtype: torch.dtype, width: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Kernel())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert attention._kernel_dtype(cuda, dtype, width) == (dtype if fits else None)
    assert attention._kernel_dtype(cpu, dtype, width) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert attention._kernel_dtype(cuda, dtype, width) is None


@pytest.mark.parametrize(
    ("release", "found"), [("none", False), ("2.10", False), ("2.11", True), ("2.15", True)]
)
def test_builds_of_torch_without_a_kernel_that_serves(
    release: str, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, None if release == "none" else Kernel(release))
    assert (attention._varlen_attn() is not None) == found
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    dtype = attention._kernel_dtype(torch.device("cuda"), torch.bfloat16, 128)
    assert dtype == (torch.bfloat16 if found else None)


def test_autocast_decides_the_kernel_s_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Kernel())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    found = attention._kernel_dtype(torch.device("cuda"), torch.float32, 128)
    assert found == torch.bfloat16


def test_padding_sees_something_and_all_else_sees_what_it_did() -> None:
    from transformers.masking_utils import sdpa_mask

    padding = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    settings: Any = {
        "batch_size": 2,
        "q_length": 4,
        "kv_length": 4,
        "attention_mask": padding.bool(),
    }
    ours, theirs = text_mask(**settings), sdpa_mask(**settings)
    assert ours is not None
    assert theirs is not None
    lost = ~theirs.any(-1)
    assert lost.tolist() == [[[True, True, False, False]], [[False] * 4]]
    assert ours[lost].all()
    assert torch.equal(ours[~lost], theirs[~lost])


def test_whether_there_is_padding_is_not_looked_for() -> None:
    """On a GPU it would be waited for; who knows that there is none gives no mask."""
    settings: Any = {"batch_size": 2, "q_length": 4, "kv_length": 4}
    assert text_mask(**settings, attention_mask=None) is None
    mask = text_mask(**settings, attention_mask=torch.ones(2, 4, dtype=torch.bool))
    assert mask is not None
    assert torch.equal(mask, torch.ones(2, 1, 4, 4).tril().bool())
    # A token that is written after padded prompts.
    settings |= {"q_length": 1, "q_offset": 3}
    mask = text_mask(**settings, attention_mask=torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool())
    assert mask is not None
    assert mask.tolist() == [[[[False, False, True, True]]], [[[True] * 4]]]


@pytest.mark.parametrize("places", [None, 120, 1])
@pytest.mark.parametrize("new", [2, 5])
def test_new_tokens_attend_to_many_without_copies_of_their_keys(
    new: int, places: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows together, or as many at a time as the mask has room for."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    module, generator = nn.Module(), torch.Generator().manual_seed(0)
    module.num_key_value_groups = 3  # type: ignore[assignment]
    query = torch.randn(4, 6, new, 8, generator=generator)
    key, value = (torch.randn(4, 2, 9, 8, generator=generator) for _ in range(2))
    mask = torch.rand(4, 1, new, 9, generator=generator) > 0.4
    mask[..., -1] = True
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    shapes, sdpa = [], nn.functional.scaled_dot_product_attention

    def watched(*heads: Any, **settings: Any) -> Tensor:
        shapes.append([tuple(tensor.shape) for tensor in heads])
        return sdpa(*heads, **settings)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watched)
    if places is not None:
        monkeypatch.setattr(attention, "MASK_CHUNK", places)
    made, _ = text_attention(
        module, query, key, value, mask, attend=attend, scaling=0.3, dropout=0.0
    )
    torch.testing.assert_close(made, expected)
    rows = 4 if places is None else max(1, places // (3 * new * 9))
    assert shapes == [[(rows, 2, 3 * new, 8), (rows, 2, 9, 8), (rows, 2, 9, 8)]] * (4 // rows)
