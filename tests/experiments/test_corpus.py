"""The text to train on, and the baselines a model of it has to beat."""

import lzma
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.policies.types import InputError
from tiny_moe.baselines import trigram_bits_per_byte, xz_bits_per_byte
from tiny_moe.corpus import standard_library


def data(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


@pytest.fixture(scope="module")
def library():
    return standard_library()


def test_the_split_is_by_file_and_leaves_tests_out(tmp_path):
    for number in range(400):
        (tmp_path / f"m{number}.py").write_text(f"x = {number}\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "t.py").write_text("left out\n")
    corpus = standard_library(tmp_path)
    assert sum(corpus.files) == 400
    assert 1 <= corpus.files[1] <= 30  # 10 expected
    texts = [part.tobytes().split(b"\0")[:-1] for part in (corpus.training, corpus.held_out)]
    assert [len(part) for part in texts] == list(corpus.files)
    assert {*texts[0], *texts[1]} == {f"x = {number}\n".encode() for number in range(400)}


def test_an_empty_folder_is_no_library(tmp_path):
    with pytest.raises(InputError, match="found 0 sources, expected a standard library"):
        standard_library(tmp_path)


def test_the_library_is_large_and_the_same_twice(library):
    assert library.training.size > 5e6
    assert library.held_out.size > 1e5
    # One file in forty, drawn by a hash of its path: of n files n / 40, give or take 4 standard deviations.
    held_out, expected = library.files[1], sum(library.files) / 40
    assert abs(held_out - expected) < 4 * expected**0.5
    assert standard_library().digest == library.digest


def test_pieces_start_at_lines_and_do_not_overlap(library):
    pieces = library.pieces(True, 64, 64, seed=3)
    whole = library.held_out.tobytes().decode("utf-8", "replace")
    assert len(set(pieces)) == 64
    assert all(len(piece.encode()) == 64 and f"\n{piece}" in whole for piece in pieces)
    assert pieces == library.pieces(True, 64, 64, seed=3)


def test_too_many_pieces_are_refused(library):
    with pytest.raises(InputError, match="pieces of 10000 bytes, expected 1000"):
        library.pieces(True, 1000, 10000, seed=0)


def test_trigrams_by_hand():
    """Training text aab.  Order 0: counts a 2, b 1, m = 2 kinds: p(a) = (2 + 2/256) / 5, p(b) = (1 + 2/256) / 5.

    Order 1 after a: a 1, b 1, m = 2: p(b|a) = (1 + 2 p(b)) / 4.  Order 2 after aa: b alone, m = 1, (1 + p(b|a)) / 2.
    """
    a, b = (2 + 2 / 256) / 5, (1 + 2 / 256) / 5
    after_a = (1 + 2 * b) / 4
    assert trigram_bits_per_byte(data(b"aab"), data(b"a")) == pytest.approx(-math.log2(a))
    assert trigram_bits_per_byte(data(b"aab"), data(b"ab")) == pytest.approx(-math.log2(a * after_a) / 2)
    same = (1 + 2 * a) / 4
    assert trigram_bits_per_byte(data(b"aab"), data(b"aab")) == pytest.approx(
        -math.log2(a * same * (1 + after_a) / 2) / 3
    )


@settings(max_examples=5)
@given(st.binary(min_size=1, max_size=40), st.binary(min_size=2, max_size=2))
def test_trigram_probabilities_add_up(training, context):
    """Over all bytes that may follow: bits of the whole less bits of the context."""
    before = 2 * trigram_bits_per_byte(data(training), data(context))
    whole = [3 * trigram_bits_per_byte(data(training), data(context + bytes([byte]))) for byte in range(256)]
    assert sum(2 ** (before - bits) for bits in whole) == pytest.approx(1)


def test_xz_is_the_tool_at_its_strongest():
    text = b"the same sentence again and again. " * 200
    expected = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    assert xz_bits_per_byte(data(text)) == expected < 0.3
