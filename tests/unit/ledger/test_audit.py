"""The audit of a ledger is silent about a run that was fed as planned, and finds each way in which a loader breaks."""

import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline.artifacts import storage
from data_pipeline.artifacts.check_result import CheckResult
from data_pipeline.errors import ArtifactError
from data_pipeline.feed import rank_feed
from data_pipeline.feed.rank_feed import OrderedRows, RankFeed
from data_pipeline.order.row_order import Phase, RowOrder
from data_pipeline.shards import format, manifest
from data_pipeline.shards.manifest import Manifest, Shard
from data_pipeline.shards.pack import PackedRows
from trainer.ledger import audit as audits
from trainer.ledger import ledger
from trainer.ledger.audit import History
from trainer.ledger.ledger import Ledger
from trainer.ledger.step_name import new_name

LENGTH, VOCABULARY = 4, 1000
ROWS = {"el": (100, 41), "en": (70,)}
"""Rows of each shard: more than one shard, and more than one row group in them."""
WARMUP = ((3, 4), (5, 5))
STAGES = (Phase(until=4, weights=(1.0, 0.0)), Phase(until=9, weights=(0.3, 0.7)))
Change = Callable[[pa.Table], list[pa.Table]]
"""What a broken loader makes of the rows of a step."""


def table(ids: NDArray[np.integer]) -> pa.Table:
    """Rows of a shard, each full."""
    full, starts = np.full(len(ids), LENGTH, np.int32), [np.zeros(1, np.int32)] * len(ids)
    return format.text_rows(
        PackedRows(ids=ids.astype(np.uint32), n_tokens=full, doc_starts=starts, cut_documents=0), VOCABULARY
    )


def shards(folder: str, seed: int = 0) -> Manifest:
    streams = dict[str, tuple[Shard, ...]]()
    for name, sizes in ROWS.items():
        made = list[Shard]()
        for number, count in enumerate(sizes):
            path = f"{name}/part-{number:05d}.parquet"
            ids = np.random.default_rng((seed, len(streams), number)).integers(0, VOCABULARY, (count, LENGTH))
            sha256 = format.write(storage.join(folder, path), table(ids))
            size = {"rows": count, "documents": count, "tokens": 4 * count, "text_tokens": 4 * count, "text_bytes": 9 * count}
            made.append(Shard(path=path, sha256=sha256, padding=0, cut=0, **size))
        streams[name] = tuple(made)
    found = Manifest(length=LENGTH, vocab_size=VOCABULARY, tokenizer="none", streams=streams)
    found.save(folder)
    return found


def order(found: Manifest, batch: int = 7) -> RowOrder:
    streams = found.order_streams({"el": 0.6, "en": 0.4})
    return RowOrder(streams=streams, batch=batch, seed=5, warmup=WARMUP, stages=STAGES, window=2)


@pytest.fixture
def rows(tmp_path: Path) -> OrderedRows:
    folder = str(tmp_path / "rows")
    found = shards(folder)
    return OrderedRows(order=order(found), folder=folder, manifest=found, micro_batch=2)


@pytest.fixture(params=["local", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "run" / "ledger")
    else:
        storage.remove("memory://test-audit")
        yield "memory://test-audit/ledger"
        storage.remove("memory://test-audit")


@dataclass
class Run:
    """A training as far as its ledger goes: what the loop and its saves write."""

    rows: OrderedRows
    uri: str
    skipped: tuple[tuple[int, int], ...] = ()
    step: int = 0
    lineage: list[str] = field(default_factory=list)

    def to(
        self,
        last: int,
        world: int,
        *,
        fed: tuple[tuple[int, int], ...] | None = None,
        counts: bool = True,
        change: Change = lambda table: [table],
        rank: int | None = None,
    ) -> str:
        """Trains up to `last` and saves.

        Args:
            fed: steps that the loader leaves out, if those are not the run's.
            counts: whether the save is a checkpoint, or the attempt dies before it is one.
            change: what the loader does to the rows of a step, on all ranks or on one.
        """
        name = new_name(last, world)
        for number in range(world):
            book = Ledger(self.uri, number)
            feed = RankFeed(rows=self.rows, rank=number, world=world, skipped=self.skipped if fed is None else fed)
            for table in feed.read_local(self.step, last):
                for had in change(table) if rank in (None, number) else [table]:
                    book.note(had)
            book.write(name, book.take())
        if counts:
            self.lineage.append(name)
            self.step = last
        return name

    def back(self, checkpoint: int) -> None:
        """Goes on from an earlier checkpoint."""
        self.lineage = self.lineage[: checkpoint + 1]
        self.step = int(self.lineage[-1][5:14])

    def finish(self) -> None:
        Ledger(self.uri, 0).finish({"lineage": self.lineage, "skipped": self.skipped, "steps": self.step})

    def audit(self) -> dict[str, CheckResult]:
        self.finish()
        history = audits.read_history(self.uri)
        assert history is not None
        return {found.check: found for found in audits.audit(self.uri, self.rows, history)}

    def wrong(self) -> dict[str, tuple[str, ...]]:
        """The checks that fail, and what they say."""
        return {name: found.failures for name, found in self.audit().items() if not found.is_ok}


def slots_of(rows: OrderedRows, step: int, rank: int, world: int) -> list[int]:
    """The slots that a rank trains on."""
    slots = RankFeed(rows=rows, rank=rank, world=world).slots(step)
    return [int(slot) for slot, weight in zip(slots.slot, slots.weight, strict=True) if weight]


@pytest.fixture
def run(rows: OrderedRows, uri: str) -> Run:
    """Four steps of two ranks."""
    made = Run(rows, uri)
    made.to(0, 2)
    made.to(4, 2)
    return made


def test_a_run_whose_number_of_ranks_changes_is_as_planned(rows: OrderedRows, uri: str) -> None:
    run = Run(rows, uri)
    assert audits.read_history(uri) is None
    for last, world in ((0, 1), (2, 1), (6, 2), (11, 3), (11, 2), (12, 2), (20, 1), (23, 3)):
        run.to(last, world)
    found = run.audit()
    assert list(found) == ["order", "rows", "replays"]
    assert all(check.is_ok for check in found.values())
    assert f"{rows.order.sizes.offset(23)} rows of 23 steps" in found["order"].detail
    assert found["rows"].detail == "compared with the shards"
    assert "0 segments" in found["replays"].detail


def test_each_planned_slot_is_in_the_ledger_once_whoever_had_it(run: Run) -> None:
    run.to(9, 3)
    had = pa.concat_tables([ledger.read(run.uri, name) for name in run.lineage])
    wanted = run.rows.order.lookup(np.arange(run.rows.order.sizes.offset(9)))
    for name in ("step", "slot", "stream", "epoch", "row"):
        assert had[name].to_pylist() == getattr(wanted, name).tolist()


def test_steps_of_a_dead_attempt_that_were_repeated_do_not_count(run: Run) -> None:
    run.to(9, 2, counts=False)
    run.to(7, 3)
    run.to(9, 1)
    run.back(2)
    run.to(12, 2)
    found = run.audit()
    assert all(check.is_ok for check in found.values())
    assert "2 segments" in found["replays"].detail


def test_steps_that_were_left_out_are_no_gap(run: Run) -> None:
    run.to(10, 2)
    run.back(1)
    run.skipped = ((7, 10),)
    run.to(4, 2)
    run.to(9, 3)
    run.to(12, 1)
    run.back(3)
    run.skipped = ((7, 10), (13, 14))
    run.to(14, 2)
    found = run.audit()
    assert all(check.is_ok for check in found.values()), found
    assert "4 steps skipped" in found["order"].detail


def test_a_batch_that_is_skipped_after_a_resume_is_found(run: Run) -> None:
    run.to(9, 2, fed=((4, 5),))
    wrong = run.wrong()
    assert set(wrong) == {"order"}
    size = run.rows.order.sizes.size(4)
    assert [f"step 4 slot {slot} was never trained on" for slot in range(size)] == list(wrong["order"][:size])
    assert "step 9 slot 0 is not in the order" in wrong["order"]


def test_a_step_that_is_read_twice_is_found(run: Run) -> None:
    run.to(9, 2, change=lambda table: [table, table] if table["step"][0].as_py() == 6 else [table])
    wrong = run.wrong()
    assert set(wrong) == {"order"}
    assert wrong["order"] == tuple(f"step 6 slot {slot} was trained on twice" for slot in range(7))


def test_a_single_row_that_is_left_out_is_found(run: Run) -> None:
    run.to(9, 3, change=lambda table: [table.slice(1)] if table["step"][0].as_py() == 8 else [table], rank=2)
    lost = slots_of(run.rows, 8, 2, 3)[0]
    assert run.wrong() == {"order": (f"step 8 slot {lost} was never trained on",)}


def having(rows: pa.Table, column: str, value: int) -> list[pa.Table]:
    """The rows with another value in a column."""
    values = pa.array([value] * len(rows), rows.schema.field(column).type)
    return [rows.set_column(rows.column_names.index(column), column, values)]


def altered(rows: pa.Table) -> list[pa.Table]:
    """Rows that say something else."""
    return having(rows, "n_tokens", 7)


def swapped(table: pa.Table) -> list[pa.Table]:
    """Another order of the rows within the rank: the slots stay."""
    turned = table.take(pa.array(range(len(table))[::-1]))
    for name in ("step", "slot", "weight"):
        turned = turned.set_column(turned.column_names.index(name), name, table[name])
    return [turned]


def test_an_order_of_the_rank_s_own_is_found(run: Run) -> None:
    run.to(9, 2, change=swapped, rank=1)
    wrong = run.wrong()
    assert set(wrong) == {"order"}
    slots, at = run.rows.order.step(5), slots_of(run.rows, 5, 1, 2)[0]
    line = next(line for line in wrong["order"] if line.startswith(f"step 5 slot {at} "))
    assert line.endswith(f"the order has {(int(slots.stream[at]), int(slots.epoch[at]), int(slots.row[at]))}")


def test_another_seed_is_found(run: Run) -> None:
    other = replace(run.rows, order=replace(run.rows.order, seed=6))
    run.rows, right = other, run.rows
    run.to(9, 2)
    run.rows = right
    assert set(run.wrong()) == {"order"}


def test_a_part_that_is_missing_is_found(run: Run) -> None:
    name = run.to(9, 2)
    storage.remove(storage.join(run.uri, name, "rank-00001.parquet"))
    wrong = run.wrong()
    assert set(wrong) == {"order"}
    assert f"{name}: 1 parts of 2 ranks" in wrong["order"]
    missing_slots = [line for line in wrong["order"] if line.startswith("step 5 ")]
    assert missing_slots == [f"step 5 slot {slot} was never trained on" for slot in slots_of(run.rows, 5, 1, 2)]


def test_a_part_that_held_no_row_must_also_be_there(rows: OrderedRows, uri: str) -> None:
    run = Run(rows, uri)
    name = run.to(0, 3)
    run.to(2, 3)
    storage.remove(storage.join(uri, name, "rank-00002.parquet"))
    assert run.wrong() == {"order": (f"{name}: 2 parts of 3 ranks",)}


@pytest.mark.parametrize("keep", [0, 10, -9])
def test_a_part_that_is_torn_is_found(run: Run, keep: int) -> None:
    path = storage.join(run.uri, run.to(9, 2), "rank-00000.parquet")
    storage.write_bytes(path, storage.read_bytes(path)[:keep])
    wrong = run.wrong()
    assert set(wrong) == {"order"}
    assert any("rank-00000.parquet: cannot be read" in line for line in wrong["order"])


def test_a_missing_segment_is_found(run: Run) -> None:
    name = run.to(9, 2)
    run.to(11, 2)
    Ledger(run.uri, 0).drop(name)
    wrong = run.wrong()
    assert set(wrong) == {"order"}
    assert f"{name}: 0 parts of 2 ranks" in wrong["order"]


def test_a_history_that_ends_elsewhere_is_found(run: Run) -> None:
    run.to(9, 2)
    run.step = 10
    assert run.wrong() == {"order": ("the segments end after step 9, the run after step 10",)}


def test_skipped_steps_that_were_trained_on_are_found(run: Run) -> None:
    run.skipped = ((5, 6),)
    run.to(9, 2, fed=())
    wrong = run.wrong()
    assert set(wrong) == {"order"}
    missing = [f"step 9 slot {slot} was never trained on" for slot in range(7)]
    assert wrong["order"] == (*missing, *(f"step 5 slot {slot} is not in the order" for slot in range(7)))


def test_rows_that_changed_since_are_found(run: Run) -> None:
    """One row of a shard is another, and the shard is well formed."""
    run.to(9, 2)
    row = run.rows.order.step(7)
    number = int(row.row[3])
    name = ("el", "en")[int(row.stream[3])]
    part, inside = (0, number) if number < ROWS[name][0] else (1, number - ROWS[name][0])
    path = storage.join(run.rows.folder, f"{name}/part-{part:05d}.parquet")
    ids = format.token_ids(format.read_groups(path)["input_ids"], LENGTH)
    ids[inside, 2] ^= 1
    format.write(path, table(ids))
    wrong = run.wrong()
    assert set(wrong) == {"rows"}
    assert wrong["rows"] == ("step 7 slot 3 had other content than the shards have now",)


@pytest.mark.parametrize("left", [0, 10, 64, 69])
def test_a_shard_that_has_lost_rows_is_found(run: Run, left: int) -> None:
    run.to(40, 2)
    path = storage.join(run.rows.folder, "en/part-00000.parquet")
    format.write(path, table(format.token_ids(format.read_groups(path)["input_ids"], LENGTH)[:left]))
    assert set(run.wrong()) == {"rows"}


def test_a_missing_shard_is_found(run: Run) -> None:
    run.to(9, 2)
    storage.remove(storage.join(run.rows.folder, "el/part-00001.parquet"))
    wrong = run.wrong()
    assert set(wrong) == {"rows"}
    assert "part-00001.parquet: cannot be read" in wrong["rows"][0]


def test_bits_that_flipped_in_a_shard_since_are_found(run: Run) -> None:
    run.to(9, 2)
    path = Path(run.rows.folder, "en", "part-00000.parquet")
    content = bytearray(path.read_bytes())
    content[40] ^= 4
    path.write_bytes(content)
    wrong = run.wrong()
    assert set(wrong) == {"rows"}
    assert "part-00000.parquet" in wrong["rows"][0]


def test_a_row_that_was_changed_on_its_way_is_found(run: Run) -> None:
    run.to(5, 2, change=altered, rank=1)
    wrong = run.wrong()
    assert set(wrong) == {"rows"}
    assert wrong["rows"] == tuple(
        f"step 4 slot {slot} had other content than the shards have now" for slot in slots_of(run.rows, 4, 1, 2)
    )


def test_a_long_segment_is_compared_to_its_end(rows: OrderedRows, tmp_path: Path) -> None:
    run = Run(rows, str(tmp_path / "ledger"))
    run.to(600, 1, change=lambda rows: altered(rows) if rows["step"][0].as_py() == 599 else [rows])
    assert len(ledger.read(run.uri, run.lineage[-1])) > 4096
    assert run.wrong() == {
        "rows": tuple(f"step 599 slot {slot} had other content than the shards have now" for slot in range(7))
    }


def test_missing_shards_are_not_compared(run: Run) -> None:
    run.to(9, 2)
    run.to(12, 2, counts=False)
    storage.remove(run.rows.folder)
    found = run.audit()
    assert all(check.is_ok for check in found.values())
    assert found["rows"].detail == "the shards are gone: not compared"


def test_a_replay_of_other_rows_is_found(run: Run) -> None:
    run.to(9, 2, counts=False, change=swapped)
    run.to(9, 3)
    wrong = run.wrong()
    assert set(wrong) == {"replays"}
    assert any(line.startswith(f"step 5 slot {slots_of(run.rows, 5, 1, 2)[0]} had") for line in wrong["replays"])


def test_a_replay_of_rows_that_held_something_else_is_found(run: Run) -> None:
    run.to(6, 2, counts=False, change=altered)
    run.to(9, 2)
    wrong = run.wrong()
    assert set(wrong) == {"replays"}
    assert wrong["replays"][0] == "step 4 slot 0 had other content than the shards have now"


def test_a_replay_that_read_a_step_twice_is_found(run: Run) -> None:
    run.to(6, 2, counts=False, change=lambda table: [table, table] if table["step"][0].as_py() == 5 else [table])
    run.to(9, 2)
    wrong = run.wrong()
    assert set(wrong) == {"replays"}
    assert wrong["replays"][0] == "step 5 slot 0 was trained on twice"


def test_a_replay_of_which_some_ranks_wrote_nothing_is_no_fault(run: Run) -> None:
    name = run.to(6, 3, counts=False)
    storage.remove(storage.join(run.uri, name, "rank-00001.parquet"))
    run.to(9, 2)
    assert run.wrong() == {}


def test_a_torn_part_of_a_segment_that_does_not_count_is_no_failure(rows: OrderedRows, tmp_path: Path) -> None:
    """Rank 0 had written, rank 1 was at it: `storage.write_bytes` leaves its draft when it is killed."""
    run = Run(rows, str(tmp_path / "ledger"))
    run.to(4, 2)
    torn = Path(run.uri, run.to(6, 2, counts=False), "rank-00001.parquet")
    torn.rename(f"{torn}.4242.draft")
    draft = Path(f"{torn}.4242.draft")
    draft.write_bytes(draft.read_bytes()[:100])
    run.to(9, 2)
    assert run.wrong() == {}


def test_shards_without_their_manifest_end_in_a_finding(run: Run) -> None:
    """As a `scion shard` that has not finished leaves them."""
    run.to(9, 2)
    run.rows.save(storage.join(run.uri, ledger.PLAN))
    storage.remove(storage.join(run.rows.folder, manifest.NAME))
    run.rows = rank_feed.load(storage.join(run.uri, ledger.PLAN), None)
    found = run.audit()
    assert found["order"].is_ok


@pytest.mark.parametrize(("column", "value"), [("row", 70), ("row", 141), ("row", 10_000), ("stream", 2)])
def test_a_ledger_that_names_rows_which_do_not_exist_is_found(run: Run, column: str, value: int) -> None:
    run.to(9, 2, change=lambda rows: having(rows, column, value))
    assert "order" in run.wrong()


CHANGES = ("row", "epoch", "crc", "gone", "twice")


@settings(max_examples=40)
@given(data=st.data())
def test_a_run_in_order_passes_and_any_single_wrong_row_is_found(data: st.DataObject) -> None:
    folder = "memory://test-audit-any"
    storage.remove(folder)
    found = shards(storage.join(folder, "rows"))
    micro = data.draw(st.one_of(st.none(), st.integers(1, 5)), "micro")
    plan = order(found, data.draw(st.integers(1, 9), "batch"))
    run = Run(
        OrderedRows(order=plan, folder=storage.join(folder, "rows"), manifest=found, micro_batch=micro), f"{folder}/ledger"
    )
    for steps, world in data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=5), "saves"):
        run.to(run.step + steps, world)
    assert run.wrong() == {}
    parts = [path for path in storage.files(run.uri) if path.endswith(".parquet")]
    full = [part for part in parts if len(table_of(run, part))]
    if full:
        part, change = data.draw(st.sampled_from(full), "part"), data.draw(st.sampled_from(CHANGES), "change")
        table = table_of(run, part)
        one = data.draw(st.integers(0, len(table) - 1), "row")
        segment, rank = part.split("/")
        Ledger(run.uri, int(rank[5:10])).write(segment, [amiss(table, one, change)])
        wrong = run.wrong()
        assert "rows" in wrong if change == "crc" else "order" in wrong
        assert len(wrong.get("order", ())) <= 1


def table_of(run: Run, part: str) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read_bytes(storage.join(run.uri, part))))


def amiss(table: pa.Table, one: int, change: str) -> pa.Table:
    """The table with one row changed, gone or there twice."""
    if change == "gone":
        return pa.concat_tables([table.slice(0, one), table.slice(one + 1)])
    if change == "twice":
        return pa.concat_tables([table, table.slice(one, 1)])
    values = table[change].to_pylist()
    values[one] = values[one] - 1 if values[one] else 1
    column = pa.array(values, ledger.SCHEMA.field(change).type)
    return table.set_column(table.column_names.index(change), change, column)


# The ledger itself


def test_rows_that_fill_up_ranks_are_not_noted(rows: OrderedRows, uri: str) -> None:
    book = Ledger(uri, 2)
    for table in RankFeed(rows=rows, rank=2, world=3).read_local(5, 7):
        assert 0.0 in table["weight"].to_pylist()
        book.note(table)
    book.write("step_000000007-w3-0", book.take())
    found = ledger.read(uri, "step_000000007-w3-0")
    assert found["slot"].to_pylist() == [slot for step in (5, 6) for slot in slots_of(rows, step, 2, 3)]


def test_rows_of_a_failed_segment_are_written_with_the_next(rows: OrderedRows, uri: str) -> None:
    book, tables = Ledger(uri, 0), list(RankFeed(rows=rows, rank=0, world=1).read_local(5, 8))
    book.note(tables[0])
    taken = book.take()
    book.note(tables[1])
    book.give_back(taken)
    book.note(tables[2])
    book.write("a", book.take())
    assert ledger.read(uri, "a")["step"].to_pylist() == [5] * 7 + [6] * 7 + [7] * 7
    book.write("b", book.take())
    assert len(ledger.read(uri, "b")) == 0
    assert ledger.segments(uri) == ["a", "b"]
    book.drop("a")
    assert ledger.segments(uri) == ["b"]


def test_a_checksum_depends_on_a_row_s_content_and_not_on_its_place(rows: OrderedRows) -> None:
    (table,) = RankFeed(rows=rows, rank=0, world=1).read_local(5, 6)
    whole = ledger.crcs(table)
    assert len(set(whole.tolist())) == 7
    turned = table.take(pa.array([6, 2, 4]))
    assert ledger.crcs(turned).tolist() == whole[[6, 2, 4]].tolist()
    assert ledger.crcs(table.slice(3, 2)).tolist() == whole[3:5].tolist()
    assert ledger.crcs(pa.concat_tables([table.slice(0, 2), table.slice(2)])).tolist() == whole.tolist()


# The plan that a run leaves


@pytest.mark.parametrize("micro", [None, 2])
def test_a_plan_is_read_as_it_was_saved(rows: OrderedRows, uri: str, micro: int | None) -> None:
    saved = replace(rows, micro_batch=micro)
    saved.save(storage.join(uri, ledger.PLAN))
    assert rank_feed.load(storage.join(uri, ledger.PLAN), None) == saved
    assert json.loads(storage.read_bytes(storage.join(uri, ledger.PLAN)))["manifest"] == rows.manifest.id


def test_shards_that_were_moved_are_named(rows: OrderedRows, uri: str, tmp_path: Path) -> None:
    rows.save(storage.join(uri, ledger.PLAN))
    moved = str(tmp_path / "moved")
    Path(rows.folder).rename(moved)
    loaded = rank_feed.load(storage.join(uri, ledger.PLAN), moved)
    assert loaded == replace(rows, folder=moved)
    without = rank_feed.load(storage.join(uri, ledger.PLAN), None)
    assert without.order == rows.order
    assert without.manifest.streams == {}


def test_other_shards_are_refused(rows: OrderedRows, uri: str, tmp_path: Path) -> None:
    rows.save(storage.join(uri, ledger.PLAN))
    shards(str(tmp_path / "other"), seed=50)
    with pytest.raises(ArtifactError, match="not the shards that the run was trained on"):
        rank_feed.load(storage.join(uri, ledger.PLAN), str(tmp_path / "other"))
    with pytest.raises(ArtifactError, match="no shards are here"):
        rank_feed.load(storage.join(uri, ledger.PLAN), str(tmp_path / "nowhere"))
    shards(rows.folder, seed=50)
    with pytest.raises(ArtifactError, match="not the shards that the run was trained on"):
        rank_feed.load(storage.join(uri, ledger.PLAN), None)


def test_a_run_is_audited_from_its_files(run: Run) -> None:
    run.skipped = ((6, 8),)
    run.to(13, 3)
    run.rows.save(storage.join(run.uri, ledger.PLAN))
    run.rows = rank_feed.load(storage.join(run.uri, ledger.PLAN), None)
    assert run.wrong() == {}
    assert audits.read_history(run.uri) == History(lineage=tuple(run.lineage), steps=13, skipped=((6, 8),))


def test_segments_of_the_same_step_have_different_names() -> None:
    names = [new_name(3, 2)]
    while len(names) < 50:
        time.sleep(1e-6)
        names.append(new_name(3, 2))
    assert len(set(names)) == 50
