"""Which documents stay, compared with the rules written as loops over sets, on hashes that often repeat."""

import numpy as np
import pytest

from data_pipeline.shards import corpus

EMPTY = bytes(16)


def scan(random: np.random.Generator, rows: int) -> dict:
    names = [bytes([value % 5]) * 15 + bytes([value]) if value else EMPTY for value in random.integers(0, 30, rows)]
    codes = random.integers(0, 3, rows)
    return {
        "hashes": b"".join(names),
        "heldout": random.random(rows) < random.choice([0.0, 0.2]),
        "langs": (["el", "tr", "ja"], codes),
        "chances": random.random(rows),
    }


def one_after_the_other(scans: list[dict]) -> tuple[list[list[bool]], dict[str, int]]:
    rows = [
        (part["hashes"][16 * place : 16 * place + 16], bool(held))
        for part in scans
        for place, held in enumerate(part["heldout"])
    ]
    reserved = {name for name, held in rows if held}
    fates, seen = [], set()
    for name, held in rows:
        if name == EMPTY:
            fates.append("empty")
        elif name in seen:
            fates.append("duplicate")
        elif not held and name in reserved:
            fates.append("in_heldout")
        else:
            fates.append("heldout" if held else "train")
            seen.add(name)
    left = iter(fates)
    keeps = [[next(left) in ("train", "heldout") for _ in part["heldout"]] for part in scans]
    return keeps, {name: fates.count(name) for name in ("train", "heldout", "empty", "duplicate", "in_heldout")}


@pytest.mark.parametrize("seed", range(40))
def test_the_first_of_equal_documents_stays_held_out_ones_first(seed: int) -> None:
    random = np.random.default_rng(seed)
    scans = [scan(random, int(rows)) for rows in random.integers(0, 12, 6)]
    keeps, fates = corpus.decide_fates(scans)
    wanted, counted = one_after_the_other(scans)
    assert [keep.tolist() for keep in keeps] == wanted
    assert fates == counted


@pytest.mark.parametrize("seed", range(60))
def test_a_language_of_two_documents_has_some_on_both_sides(seed: int) -> None:
    random = np.random.default_rng(seed)
    scans = [scan(random, int(rows)) for rows in random.integers(0, 6, 4)]
    if seed % 2:
        for part in scans:  # a language whose documents share an id that chance holds out
            part["heldout"] |= part["langs"][1] == 1
    wanted: dict[int, set[int]] = {}
    for code in range(3):
        rows = [
            (float(part["chances"][row]), place, row, part["hashes"][16 * row : 16 * row + 16], bool(part["heldout"][row]))
            for place, part in enumerate(scans)
            for row in range(len(part["heldout"]))
            if part["langs"][1][row] == code and part["hashes"][16 * row : 16 * row + 16] != EMPTY
        ]
        several = len({name for *_, name, _ in rows}) > 1
        if rows and not any(held for *_, held in rows) and several:
            _, place, row, *_ = min(rows)
            wanted.setdefault(place, set()).add(row)
        if rows and all(held for *_, held in rows):
            for _, place, row, name, _ in rows:
                if not several or name != min(rows)[3]:
                    wanted.setdefault(place, set()).add(row)
    assert {place: set(rows) for place, rows in corpus.records_to_move(scans).items()} == wanted


def test_no_documents_are_no_decisions() -> None:
    assert corpus.decide_fates([]) == ([], dict.fromkeys(("train", "heldout", "empty", "duplicate", "in_heldout"), 0))
