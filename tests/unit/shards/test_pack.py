"""Packing, shard files and masks."""

import contextlib
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import CorruptError
from data_pipeline.feed.masking import Masker
from data_pipeline.shards import format
from data_pipeline.shards.framing import frame_of
from data_pipeline.shards.pack import PACKINGS, best_fit, concat_split, first_fit, segments
from data_pipeline.tokenizers.ragged import Ragged

DOCUMENTS = st.lists(st.lists(st.integers(1, 60_000), min_size=1, max_size=30), min_size=0, max_size=20)


@given(DOCUMENTS, st.integers(2, 16))
def test_packing_loses_no_token(documents: list[list[int]], length: int) -> None:
    packed = concat_split(Ragged.of(documents), length, pad=0)
    flat = [t for d in documents for t in d]
    tokens = [int(t) for row, n in zip(packed.ids, packed.n_tokens, strict=True) for t in row[:n]]
    assert tokens == flat
    assert (packed.n_tokens[:-1] == length).all()
    starts = [row * length + int(place) for row, places in enumerate(packed.doc_starts) for place in places]
    assert starts == np.cumsum([0, *map(len, documents)])[:-1].tolist()
    assert len(packed.doc_starts) == len(packed.ids)


def by_hand(sizes: list[int], length: int, best: bool) -> list[list[int]]:
    """Numbers of the pieces in each row by the definition of the rule: try every row."""
    rows: list[list[int]] = []
    for number, size in enumerate(sizes):
        room = [length - sum(sizes[i] for i in row) for row in rows]
        fitting = [row for row, left in enumerate(room) if left >= size]
        if not fitting:
            rows.append([number])
        else:
            rows[min(fitting, key=lambda row: (room[row], row)) if best else fitting[0]].append(number)
    return rows


@given(DOCUMENTS, st.integers(2, 16), st.sampled_from([first_fit, best_fit]))
def test_fitting_follows_the_rule_and_cuts_only_documents_longer_than_a_row(documents, length: int, fit) -> None:
    packed = fit(Ragged.of(documents), length, 0)
    pieces = [d[start : start + length] for d in documents for start in range(0, len(d), length)]
    expected = by_hand([len(piece) for piece in pieces], length, fit is best_fit)
    for row, members in enumerate(expected):
        tokens = [token for number in members for token in pieces[number]]
        assert packed.ids[row].tolist() == tokens + [0] * (length - len(tokens))
        assert packed.n_tokens[row] == len(tokens)
        assert packed.doc_starts[row].tolist() == np.cumsum([0, *(len(pieces[i]) for i in members)])[:-1].tolist()
    assert len(packed.ids) == len(expected)
    assert packed.cut_documents == sum(len(d) > length for d in documents)


@given(DOCUMENTS, st.integers(2, 16))
def test_a_document_in_two_rows_counts_as_cut(documents, length: int) -> None:
    ends = np.cumsum([0, *map(len, documents)])
    cut = sum(ends[i] // length != (ends[i + 1] - 1) // length for i in range(len(documents)))
    assert concat_split(Ragged.of(documents), length, 0).cut_documents == cut


def test_packings_of_real_text_trade_padding_for_cuts(family, greek) -> None:
    ids = Ragged.of([family(line).input_ids for text in greek[:60] for line in text.split("\n")])
    packed = {name: packing(ids, 128, 0) for name, packing in PACKINGS.items()}
    assert packed["concat"].padding < 128
    assert packed["concat"].cut_documents > packed["best_fit"].cut_documents == packed["first_fit"].cut_documents
    assert packed["concat"].padding < packed["best_fit"].padding <= packed["first_fit"].padding * 1.05


def test_segments_number_documents_and_restart_positions() -> None:
    segment, position = segments(np.array([0, 0, 2]), np.array([3, 5, 0]), np.array([7, 8, 2]), 8)
    assert segment.tolist() == [[0, 0, 0, 1, 1, 2, 2, -1], [0] * 8, [0, 0] + [-1] * 6]
    assert position.tolist() == [[0, 1, 2, 0, 1, 0, 1, 0], [*range(8)], [0, 1] + [0] * 6]


@pytest.mark.parametrize("vocab_size", [1000, 250_002])
def test_rows_on_disk_equal_the_rows_written(tmp_path, vocab_size: int) -> None:
    packed = concat_split(Ragged.of([[token % vocab_size for token in range(1, 990)]]), 8, pad=0)
    first = format.write(str(tmp_path / "a.parquet"), format.text_rows(packed, vocab_size))
    second = format.write(str(tmp_path / "b.parquet"), format.text_rows(packed, vocab_size))
    assert first == second
    table = format.read_groups(str(tmp_path / "a.parquet"), [1, 0])
    ids = format.token_ids(table["input_ids"], 8)
    assert (ids == np.concatenate([packed.ids[64:], packed.ids[:64]])).all()
    assert (format.token_ids(table["input_ids"].slice(3, 2), 8) == ids[3:5]).all()


def test_the_error_for_a_truncated_shard_names_it(tmp_path) -> None:
    path = tmp_path / "a.parquet"
    packed = concat_split(Ragged.of([[*range(1, 990)]]), 8, pad=0)
    format.write(str(path), format.text_rows(packed, 1000))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptError, match=r"a\.parquet"):
        format.read_groups(str(path), [0])


def test_a_flipped_bit_is_an_error_or_changes_no_value(tmp_path, greek, family) -> None:
    """When the shard is read; `scion verify` also compares whole files, see the integration tests."""
    path = tmp_path / "a.parquet"
    documents = Ragged.of([family(text).input_ids for text in greek[:20]])
    format.write(str(path), format.text_rows(concat_split(documents, 32, 0), len(family)))
    content, whole, draw = path.read_bytes(), format.read_groups(str(path)), random.Random(0)
    noticed = 0
    for _ in range(250):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        with contextlib.suppress(CorruptError):
            assert format.read_groups(str(path)).equals(whole)
            noticed -= 1
        noticed += 1
    assert noticed > 150


def test_swapped_row_groups_are_an_error() -> None:
    rows = format.text_rows(concat_split(Ragged.of([[*range(1, 990)]]), 8, 0), 1000)
    assert format.checksum(rows.slice(0, 64), 0) != format.checksum(rows.slice(0, 64), 1)
    assert format.checksum(rows.slice(0, 64), 0) == format.checksum(pa.concat_tables([rows.slice(0, 9), rows.slice(9, 55)]), 0)


def test_a_frame_holds_the_tokens_that_the_tokenizer_puts_around_a_text(family) -> None:
    frame = frame_of(family)
    inside = family("click the button", add_special_tokens=False).input_ids
    assert [*frame.prefix, *inside, *frame.suffix] == family("click the button").input_ids
    assert frame.pad == family.pad_token_id


def rows(n: int, length: int = 64, weights: list[float] | None = None) -> pa.Table:
    packed = concat_split(Ragged.of([[*range(5, 5 + n * length - 10)]]), length, pad=0)
    tags = {"stream": [0] * n, "epoch": [0] * n, "row": list(range(n)), "weight": weights or [1.0] * n}
    return (
        format.text_rows(packed, 70_000)
        .append_column("stream", pa.array(tags["stream"]))
        .append_column("epoch", pa.array(tags["epoch"]))
        .append_column("row", pa.array(tags["row"]))
        .append_column("weight", pa.array(tags["weight"], pa.float32()))
    )


def masker(**changes: object) -> Masker:
    return Masker(
        **{"length": 64, "mask_id": 4, "special_ids": (0, 1, 2, 3, 4), "vocab_size": 60_000, "probability": 0.15, "seed": 1}
        | changes
    )


def test_masks_depend_on_the_row_alone() -> None:
    table = rows(6)
    together = masker()(table)
    alone = [masker()(table.slice(i, 1)) for i in (4, 2)]
    for row, single in zip((4, 2), alone, strict=True):
        assert (together.input_ids[row] == single.input_ids[0]).all()
    assert not (masker(seed=2)(table).input_ids == together.input_ids).all()


def test_a_fixed_share_of_tokens_is_masked() -> None:
    table = rows(200)
    batch = masker()(table)
    assert len(batch.labels) == sum(round(0.15 * n) for n in table["n_tokens"].to_pylist())
    shown = batch.input_ids.flatten()[batch.places]
    masked, same = (shown == 4).float().mean(), (shown == batch.labels).float().mean()
    assert abs(masked - 0.8) < 0.04
    assert abs(same - 0.1) < 0.03
    original = format.token_ids(table["input_ids"], 64)
    assert (batch.labels.numpy() == original.ravel()[batch.places.numpy()]).all()
    untouched = np.setdiff1d(np.arange(original.size), batch.places.numpy())
    assert (batch.input_ids.numpy().ravel()[untouched] == original.ravel()[untouched]).all()


def test_fill_rows_have_no_targets() -> None:
    batch = masker()(rows(3, weights=[1.0, 0.0, 1.0]))
    assert not (batch.places // 64 == 1).any()
