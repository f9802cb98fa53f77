"""Packing, the files on disk and the masks."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import CorruptError
from data_pipeline.feed.masking import Masker
from data_pipeline.shards import format
from data_pipeline.shards.framing import frame_of
from data_pipeline.shards.pack import concat_split, segments

DOCUMENTS = st.lists(st.lists(st.integers(1, 60_000), min_size=1, max_size=30), min_size=0, max_size=20)


@given(DOCUMENTS, st.integers(2, 16))
def test_packing_loses_nothing(documents: list[list[int]], length: int) -> None:
    packed = concat_split([np.array(d, np.uint32) for d in documents], length, pad=0)
    flat = [t for d in documents for t in d]
    kept = [int(t) for row, n in zip(packed.ids, packed.n_tokens, strict=True) for t in row[:n]]
    assert kept == flat
    assert (packed.n_tokens[:-1] == length).all()
    starts = [row * length + int(place) for row, places in enumerate(packed.doc_starts) for place in places]
    assert starts == np.cumsum([0, *map(len, documents)])[:-1].tolist()
    assert len(packed.doc_starts) == len(packed.ids)


def test_segments_number_documents_and_restart_positions() -> None:
    segment, position = segments(np.array([3, 5], np.int32), 7, 8)
    assert segment.tolist() == [0, 0, 0, 1, 1, 2, 2, -1]
    assert position.tolist() == [0, 1, 2, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("vocab_size", [1000, 250_002])
def test_rows_on_disk_are_the_rows(tmp_path, vocab_size: int) -> None:
    packed = concat_split([np.arange(1, 990, dtype=np.uint32) % vocab_size], 8, pad=0)
    first = format.write(str(tmp_path / "a.parquet"), format.text_rows(packed, vocab_size))
    second = format.write(str(tmp_path / "b.parquet"), format.text_rows(packed, vocab_size))
    assert first == second
    table = format.read_groups(str(tmp_path / "a.parquet"), [1, 0])
    ids = format.token_ids(table["input_ids"], 8)
    assert (ids == np.concatenate([packed.ids[64:], packed.ids[:64]])).all()
    assert (format.token_ids(table["input_ids"].slice(3, 2), 8) == ids[3:5]).all()


def test_a_torn_shard_is_named(tmp_path) -> None:
    path = tmp_path / "a.parquet"
    packed = concat_split([np.arange(1, 990, dtype=np.uint32)], 8, pad=0)
    format.write(str(path), format.text_rows(packed, 1000))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptError, match=r"a\.parquet"):
        format.read_groups(str(path), [0])


def test_a_frame_is_what_the_tokenizer_puts_around_a_text(family) -> None:
    frame = frame_of(family)
    inside = family("click the button", add_special_tokens=False).input_ids
    assert [*frame.prefix, *inside, *frame.suffix] == family("click the button").input_ids
    assert frame.pad == family.pad_token_id


def rows(n: int, length: int = 64, weights: list[float] | None = None) -> pa.Table:
    packed = concat_split([np.arange(5, 5 + n * length - 10, dtype=np.uint32)], length, pad=0)
    tags = {"stream": [0] * n, "epoch": [0] * n, "row": list(range(n)), "weight": weights or [1.0] * n}
    return format.text_rows(packed, 70_000).append_column("stream", pa.array(tags["stream"])).append_column(
        "epoch", pa.array(tags["epoch"])).append_column("row", pa.array(tags["row"])).append_column(
        "weight", pa.array(tags["weight"], pa.float32()))  # fmt: skip


def masker(**changes: object) -> Masker:
    return Masker(**{"length": 64, "mask_id": 4, "special_ids": (0, 1, 2, 3, 4), "vocab_size": 60_000,
                     "probability": 0.15, "seed": 1} | changes)  # fmt: skip


def test_masks_depend_on_the_row_alone() -> None:
    table = rows(6)
    together = masker()(table)
    alone = [masker()(table.slice(i, 1)) for i in (4, 2)]
    for row, single in zip((4, 2), alone, strict=True):
        assert (together.input_ids[row] == single.input_ids[0]).all()
    assert not (masker(seed=2)(table).input_ids == together.input_ids).all()


def test_a_fixed_share_is_masked_by_the_rule() -> None:
    table = rows(200)
    batch = masker()(table)
    assert batch.targets == sum(round(0.15 * n) for n in table["n_tokens"].to_pylist())
    shown = batch.input_ids.flatten()[batch.places]
    masked, same = (shown == 4).float().mean(), (shown == batch.labels).float().mean()
    assert abs(masked - 0.8) < 0.04
    assert abs(same - 0.1) < 0.03
    original = format.token_ids(table["input_ids"], 64)
    assert (batch.labels.numpy() == original.ravel()[batch.places.numpy()]).all()
    untouched = np.setdiff1d(np.arange(original.size), batch.places.numpy())
    assert (batch.input_ids.numpy().ravel()[untouched] == original.ravel()[untouched]).all()


def test_rows_that_only_fill_up_have_no_targets() -> None:
    batch = masker()(rows(3, weights=[1.0, 0.0, 1.0]))
    assert not (batch.places // 64 == 1).any()
