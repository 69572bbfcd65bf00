"""Weights, bytes and attended positions of a model's shape, against sums by hand."""

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dali.policies.costs import roofline
from dali.policies.costs.model_shape import ModelShape
from dali.policies.costs.roofline import Platform, Processor
from dali.policies.types import InputError

SHAPE = ModelShape(
    name="toy",
    layers=4,
    experts=10,
    top_k=2,
    hidden=100,
    expert_width=50,
    expert_bits=4,
    dense_bits=8,
    gated=True,
    shared_width=20,
    attention_params=7000,
    attention_width=64,
    kv_bytes=32,
    dense_layers=1,
    dense_width=200,
    vocabulary=1000,
    predictor_recall={},
)
MACHINE = Platform(
    "box", Processor(1000, 50, 1, 1, 0), Processor(100, 1, 1, 1, 0), 24, 8, 25, 10, 0, 0, 0, 0
)  # fmt: skip


def test_weights_by_hand() -> None:
    # expert 3 x 100 x 50; MoE layer 7000 + 3 x 100 x 20 + 100 x 10; dense layer 7000 + 3 x 100 x 200; head 1000 x 100
    assert SHAPE.expert_params == 15_000
    assert SHAPE.layer_params == 14_000
    assert SHAPE.outside_params == 167_000
    # 4 x (14,000 + 10 x 15,000) + 167,000, and an embedding of 100,000
    assert SHAPE.total_params == 923_000
    assert SHAPE.active_params == 4 * (14_000 + 2 * 15_000) + 167_000
    assert replace(SHAPE, tied=True).total_params == 823_000


def test_two_projections_where_nothing_is_gated() -> None:
    plain = replace(SHAPE, gated=False)
    assert plain.expert_params == 10_000
    assert plain.layer_params == 7000 + 4000 + 1000
    assert plain.outside_params == 7000 + 40_000 + 100_000


def test_bytes_by_hand() -> None:
    assert SHAPE.layer_bytes == 14_000
    assert SHAPE.outside_bytes == 167_000
    headed = replace(SHAPE, head_bits=16)
    assert headed.outside_bytes == 67_000 + 200_000
    # 4 x 10 experts of 7,500, 4 layers of 14,000, the rest as above, an embedding as large as the head
    assert headed.total_bytes == 300_000 + 56_000 + 267_000 + 200_000
    assert SHAPE.unit_bytes() == 7_500


def test_attended_positions_are_the_mean_over_layers() -> None:
    assert SHAPE.attended(1000.0) == 1000
    windowed = replace(SHAPE, full_attention=0.25, window=128)
    assert windowed.attended(1000.0) == 0.25 * 1000 + 0.75 * 128
    assert windowed.attended(64.0) == 64
    linear = replace(SHAPE, full_attention=0.25, state_bytes=4000)
    assert linear.attended(1000.0) == 250
    assert linear.cache_bytes(1000.0) == 250 * 32 + 0.75 * 4000
    assert replace(linear, kv_bits=8.5).cache_bytes(0.0) == 3000
    assert replace(SHAPE, kv_bits=4).cache_bytes(1000.0) == 1000 * 8
    # The state is written as well as read.
    assert linear.attention_bytes(1000.0) == 250 * 32 + 2 * 0.75 * 4000


@given(st.floats(0, 1), st.integers(0, 4096), st.floats(0, 1e6), st.floats(0, 1e6))
def test_attention_never_reads_more_than_the_context_nor_less_of_a_longer_one(
    share: float, window: int, context: float, more: float
) -> None:
    shape = replace(SHAPE, full_attention=share, window=window)
    assert shape.attended(context) <= context * (1 + 1e-12)
    assert shape.attended(context) <= shape.attended(context + more) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("field", "value"),
    [("full_attention", 1.5), ("window", -1), ("state_bytes", -1), ("kv_bits", 0), ("head_bits", 0), ("hidden", 0)],
)
def test_what_no_model_has_is_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"model.{field}: found {value}"):
        replace(SHAPE, **{field: value})


def test_costs_of_attention_follow_the_shape() -> None:
    def seconds(shape: ModelShape) -> float:
        return roofline.roofline(shape, MACHINE, 4).dense(1, 1, 100_000.0)

    # 14,000 bytes of weights and 100,000 positions x 32 bytes over 1000 GB/s
    assert seconds(SHAPE) == pytest.approx(3.214e-6)
    assert seconds(replace(SHAPE, kv_bits=8)) == pytest.approx(1.614e-6)
    assert seconds(replace(SHAPE, full_attention=0.5, window=1000)) == pytest.approx(1.630e-6)
    assert seconds(replace(SHAPE, full_attention=0.0, state_bytes=1000)) == pytest.approx(0.016e-6)


def test_costs_of_the_head_follow_its_bits() -> None:
    costs = roofline.roofline(replace(SHAPE, head_bits=16), MACHINE, 4)
    assert costs.per_step(1, 1, 0.0) == pytest.approx(267_000 / 1000e9)


def test_configurations_find_the_class_where_they_name_it() -> None:
    assert roofline.ModelShape is ModelShape
    # What version 0.2 wrote has none of the fields with defaults.
    fields = list(asdict(SHAPE))[:17]
    assert fields[-1] == "predictor_recall"
    assert ModelShape(**{field: getattr(SHAPE, field) for field in fields}) == SHAPE


def test_sparse_attention_reads_what_it_chooses_and_keeps_everything() -> None:
    sparse = replace(SHAPE, chosen=100)
    assert sparse.attended(40.0) == 40
    assert sparse.attended(1000.0) == 100
    assert sparse.attended(1000.0, sparse=False) == 1000
    assert (
        sparse.attention_bytes(1000.0) == sparse.attention_bytes(100.0) < sparse.attention_bytes(1000.0, sparse=False)
    )
    assert sparse.cache_bytes(1000.0) == SHAPE.cache_bytes(1000.0)
