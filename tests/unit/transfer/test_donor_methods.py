"""OMP, CLP and CLP+ against scikit-learn and brute force, and the donor model that they use."""

import numpy as np
import pytest
import scipy.optimize
import sklearn.linear_model
import threadpoolctl
import torch
from transformers import GPT2Config, GPT2Model, ResNetConfig, ResNetModel, ViTConfig, ViTModel

from data_pipeline.errors import ConfigError, DataError, ModelError
from data_pipeline.tokenizers import train
from data_pipeline.tokenizers.canonical import canonical_tokens
from tests.conftest import FAMILIES, tiny_model
from trainer.executor import LocalExecutor
from trainer.transfer import apply, donor
from trainer.transfer.methods import METHODS, clp, clp_plus, omp
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Problem, assemble
from trainer.transfer.search import batch_omp, exact
from trainer.transfer.search.batch_omp import PursuitConfig, combinations
from trainer.word_vectors.texts import Texts

DONOR_METHODS = ("clp", "clp_plus", "omp")


def problem_of(family: str, english: list[str], greek: list[str]) -> Problem:
    source = FAMILIES[family](english)
    target = train.train(source, [*greek, *english], train.TokenizerConfig(vocab_size=1200))
    return Problem(source, target, Texts(corpus=lambda: iter(()), anchors=[], positives=[]), seed=3)


@pytest.fixture(scope="module")
def problem(english, greek) -> Problem:
    return problem_of("wordpiece", english, greek)


@pytest.fixture(scope="module")
def folder(problem, tmp_path_factory) -> str:
    """A donor with the new tokenizer."""
    return save_model(tmp_path_factory.mktemp("donor"), tiny_model(problem.target), problem.target)


def save_model(path, model, tokenizer) -> str:
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def entries(rows, place: int) -> dict[int, float]:
    part = slice(rows.counts[:place].sum(), rows.counts[: place + 1].sum())
    return dict(zip(rows.indices[part].tolist(), rows.weights[part].tolist(), strict=True))


def dense(index: np.ndarray, weights: np.ndarray, atoms: torch.Tensor) -> np.ndarray:
    """Coefficients [n, atoms]."""
    full = np.zeros((len(index), len(atoms)))
    np.add.at(full, (np.arange(len(index))[:, None], index), weights)
    return full


# Exact products


def test_products_of_normalised_rows_are_equal_in_any_order_of_summation() -> None:
    rows, lengths = exact.normalise_rows(normal(50, 300, seed=1) * torch.logspace(-10, 10, 50)[:, None])
    entries = rows.double().numpy()
    whole = exact.products(rows, rows)
    order = np.random.default_rng(0).permutation(300)
    backwards = sum(entries[:, [place]] * entries[:, place] for place in order)
    assert (whole == backwards).all()
    assert np.abs(whole.diagonal() - 1).max() < 1e-6
    assert np.allclose(lengths, np.logspace(-10, 10, 50) * 300**0.5, rtol=0.3)
    assert not exact.normalise_rows(torch.zeros(2, 5))[0].any()


# Batch-OMP


@pytest.mark.parametrize("k", [1, 5, 20])
def test_on_unit_atoms_it_equals_orthogonal_matching_pursuit_of_scikit_learn(k: int) -> None:
    atoms = torch.nn.functional.normalize(normal(120, 40, seed=1))
    vectors = 3 * normal(60, 40, seed=2)
    index, weights = combinations(vectors, atoms, PursuitConfig(k=k, ridge=0.0))
    expected = sklearn.linear_model.orthogonal_mp(atoms.double().numpy().T, vectors.double().numpy().T, n_nonzero_coefs=k)
    result, expected = dense(index, weights, atoms), expected.reshape(120, 60).T
    assert ((result != 0) == (expected != 0)).all()
    assert (np.count_nonzero(result, axis=1) == k).all()
    assert np.abs((result - expected) @ atoms.double().numpy()).max() < 1e-5


@pytest.mark.parametrize("normalise", [True, False])
def test_atoms_of_any_length_give_the_result_of_a_naive_pursuit(normalise: bool) -> None:
    atoms = (
        normal(90, 30, seed=3) * torch.logspace(-1, 1, 90)[torch.randperm(90, generator=torch.Generator().manual_seed(0)), None]
    )
    vectors = normal(40, 30, seed=4)
    config = PursuitConfig(k=8, ridge=0.0, normalise_atoms=normalise)
    index, weights = combinations(vectors, atoms, config)
    for row, vector in enumerate(vectors.double().numpy()):
        taken, solved = naive(vector, atoms.double().numpy(), 8, normalise)
        assert index[row].tolist() == taken
        assert np.abs(weights[row] - solved).max() < 1e-4 * np.abs(solved).max()


def naive(vector: np.ndarray, atoms: np.ndarray, k: int, normalise: bool) -> tuple[list[int], np.ndarray]:
    scale = np.linalg.norm(atoms, axis=1) if normalise else np.ones(len(atoms))
    taken: list[int] = []
    left = vector
    for _ in range(k):
        score = np.abs(atoms @ left) / scale
        score[taken] = 0
        taken.append(int(score.argmax()))
        solved = np.linalg.lstsq(atoms[taken].T, vector, rcond=None)[0]
        left = vector - solved @ atoms[taken]
    return taken, solved


def test_a_planted_combination_is_found_and_nothing_else() -> None:
    atoms = normal(300, 128, seed=5) * 2
    planted = np.zeros((30, 300))
    for row in range(30):
        generator = np.random.default_rng(row)
        planted[row, generator.choice(300, 5, replace=False)] = generator.uniform(1, 2, 5) * [1, -1, 1, -1, 1]
    vectors = torch.from_numpy(planted @ atoms.double().numpy()).float()
    result = dense(*combinations(vectors, atoms, PursuitConfig(k=20)), atoms)
    assert ((result != 0) == (planted != 0)).all()
    assert np.abs(result - planted).max() < 1e-4


def test_equal_atoms_count_once_and_zero_atoms_never() -> None:
    atoms = normal(20, 16, seed=6)
    doubled = torch.cat([torch.zeros(3, 16), atoms, atoms, 2 * atoms])
    index, weights = combinations(normal(25, 16, seed=7), doubled, PursuitConfig(k=16))
    alone, same = combinations(normal(25, 16, seed=7), atoms, PursuitConfig(k=16))
    used = weights != 0
    assert (index[used] == alone[same != 0] + 3).all()
    assert (weights == same).all()


def test_nearly_dependent_atoms_give_bounded_coefficients() -> None:
    """200 atoms in 6 dimensions, many nearly equal, for vectors that are mostly outside of their span."""
    flat = normal(100, 6, seed=8) @ normal(6, 48, seed=9)
    atoms = torch.nn.functional.normalize(torch.cat([flat, flat + 1e-5 * normal(100, 48, seed=10)]))
    vectors = torch.nn.functional.normalize(normal(50, 48, seed=11))
    _, weights = combinations(vectors, atoms, PursuitConfig(k=64))
    assert np.isfinite(weights).all()
    assert np.abs(weights).max() < 10
    assert ((weights != 0).sum(axis=1) < 30).all()
    for ridge in (1e-6, 1e-2):
        _, weights = combinations(vectors, atoms, PursuitConfig(k=64, ridge=ridge))
        assert (np.linalg.norm(weights, axis=1) <= 1 / (2 * ridge**0.5)).all()


def test_the_coefficients_are_a_ridge_regression_on_the_selected_atoms() -> None:
    atoms = torch.nn.functional.normalize(normal(40, 12, seed=18))
    vectors = normal(10, 12, seed=19)
    index, weights = combinations(vectors, atoms, PursuitConfig(k=6, ridge=0.1))
    for row, vector in enumerate(vectors.double().numpy()):
        taken = atoms.double().numpy()[index[row]]
        assert np.abs(weights[row] - np.linalg.solve(taken @ taken.T + 0.1 * np.eye(6), taken @ vector)).max() < 1e-5


def test_selecting_the_highest_cosine_leaves_a_smaller_residual_than_the_highest_product() -> None:
    atoms = normal(400, 64, seed=12) * torch.logspace(-1, 1, 400)[:, None]
    vectors = normal(80, 64, seed=13)
    left = []
    for normalise in (True, False):
        result = dense(*combinations(vectors, atoms, PursuitConfig(k=8, normalise_atoms=normalise)), atoms)
        left.append(np.linalg.norm(vectors.numpy() - result @ atoms.numpy(), axis=1).mean())
    assert left[0] < 0.9 * left[1]


def test_a_vector_that_is_zero_or_within_the_tolerance_selects_no_more_atoms() -> None:
    atoms = normal(50, 20, seed=14)
    vectors = torch.stack([torch.zeros(20), atoms[7], atoms[7] + 0.05 * normal(20, seed=15)])
    index, weights = combinations(vectors, atoms, PursuitConfig(tolerance=0.1))
    assert not weights[0].any()
    assert (index[1:, 0] == 7).all()
    assert (weights[1:] != 0).sum(axis=1).tolist() == [1, 1]
    assert combinations(vectors[:0], atoms, PursuitConfig(k=3))[0].shape == (0, 3)


# Equal bit for bit, however the work is cut


@pytest.fixture(scope="module")
def rows_and_atoms() -> tuple[torch.Tensor, torch.Tensor]:
    return normal(150, 37, seed=16), normal(230, 37, seed=17) * torch.logspace(-1, 1, 230)[:, None]


def omp_kernel(vectors: torch.Tensor, atoms: torch.Tensor, executor: LocalExecutor) -> tuple[np.ndarray, np.ndarray]:
    return combinations(vectors, atoms, PursuitConfig(k=24), executor)


def clp_kernel(vectors: torch.Tensor, atoms: torch.Tensor, executor: LocalExecutor) -> tuple[np.ndarray, np.ndarray]:
    return clp.cosine_mixtures(vectors, atoms, len(atoms), executor)


@pytest.mark.parametrize("kernel", [omp_kernel, clp_kernel])
def test_blocks_and_order_change_no_bit(kernel, rows_and_atoms) -> None:
    """The smallest block holds one vector and has no room for the Gram matrix."""
    vectors, atoms = rows_and_atoms
    index, weights = kernel(vectors, atoms, LocalExecutor())
    for block_bytes in (1, 200_000, 1_000_000, 7_777_777):
        cut = kernel(vectors, atoms, LocalExecutor(block_bytes))
        assert (cut[0] == index).all()
        assert (cut[1] == weights).all()
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    shuffled = kernel(vectors[order], atoms, LocalExecutor(1_000_000))
    assert (shuffled[0] == index[order]).all()
    assert (shuffled[1] == weights[order]).all()


def test_without_room_for_the_gram_matrix_no_bit_changes(rows_and_atoms, monkeypatch) -> None:
    with_gram = omp_kernel(*rows_and_atoms, LocalExecutor())
    monkeypatch.setattr(batch_omp, "GRAM_BLOCKS", 0)
    without = omp_kernel(*rows_and_atoms, LocalExecutor())
    assert (without[0] == with_gram[0]).all()
    assert (without[1] == with_gram[1]).all()


def test_the_number_of_threads_changes_no_bit(rows_and_atoms) -> None:
    usual = omp_kernel(*rows_and_atoms, LocalExecutor())
    with threadpoolctl.threadpool_limits(1):
        alone = omp_kernel(*rows_and_atoms, LocalExecutor())
    assert (alone[0] == usual[0]).all()
    assert (alone[1] == usual[1]).all()


# The methods on a whole problem


def donor_rows(problem: Problem) -> tuple[np.ndarray, list[int]]:
    """Computed by hand for a donor with the new tokenizer: its embeddings, and the ordinary target ids that all three have."""
    table = tiny_model(problem.target).get_input_embeddings().weight.detach().double().numpy()
    shared = [t for t in np.flatnonzero(problem.shared >= 0) if problem.tokens[t].role is None]
    first = {int(problem.shared[t]): int(t) for t in reversed(shared)}
    return table, sorted(first.values())


@pytest.mark.parametrize("method", DONOR_METHODS)
def test_every_new_token_that_the_donor_has_is_placed(problem, folder, method: str) -> None:
    entry = METHODS[method]
    rows = entry.place(problem, entry.config(donor=folder))
    plan = assemble(problem, rows, method)
    assert rows.ids.tolist() == problem.new.tolist()
    assert len(rows.ids) > 300
    assert plan.fates()["donor" if method == "omp" else "neighbours"] == len(rows.ids)
    assert "random" not in plan.fates()
    new = apply.embeddings(plan, normal(problem.source_rows, 24, seed=1))
    assert new.isfinite().all()
    if method != "omp":
        assert torch.allclose(plan.dense().sum(dim=1)[rows.ids], torch.ones(len(rows.ids)), atol=1e-5)


def test_clp_is_the_cosine_weighted_mean_of_all_shared_tokens(problem, folder) -> None:
    rows = clp.place(problem, clp.ClpConfig(donor=folder))
    table, shared = donor_rows(problem)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    guarded = 0
    for place in range(0, len(rows.ids), 17):
        cosines = unit[shared] @ unit[rows.ids[place]]
        if cosines.sum() < 0.1 * np.abs(cosines).sum():
            cosines, guarded = np.maximum(cosines, 0), guarded + 1
        expected = dict(zip(problem.shared[shared].tolist(), cosines / cosines.sum(), strict=True))
        result = entries(rows, place)
        assert max(abs(result.get(old, 0.0) - weight) for old, weight in expected.items()) < 1e-6
        assert set(result) <= set(expected)
    assert guarded > 5


def test_clp_keeps_negative_weights_unless_they_cancel_the_sum() -> None:
    cosines = np.array([[0.9, 0.5, -0.2], [0.5, -0.5, -0.1], [0.3, -0.29, 0.0], [-0.1, -0.2, -0.3], [0.0, 0.0, 0.0]])
    weights = clp.cosine_weights(cosines)
    assert np.allclose(weights[0], np.array([0.9, 0.5, -0.2]) / 1.2)
    assert weights[1:].tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_clp_with_top_mixes_only_the_nearest(problem, folder) -> None:
    rows = clp.place(problem, clp.ClpConfig(donor=folder, top=7))
    table, shared = donor_rows(problem)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    for place in range(0, len(rows.ids), 17):
        cosines = unit[shared] @ unit[rows.ids[place]]
        best = np.argsort(-cosines, kind="stable")[:7]
        result = entries(rows, place)
        assert list(result) == problem.shared[shared][best].tolist()
        assert np.abs(np.array(list(result.values())) - cosines[best] / cosines[best].sum()).max() < 1e-6


def test_clp_plus_is_sparsemax_over_the_shared_tokens(problem, folder) -> None:
    rows = clp_plus.place(problem, clp_plus.ClpPlusConfig(donor=folder))
    table, shared = donor_rows(problem)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    for place in range(0, len(rows.ids), 17):
        z = unit[shared] @ unit[rows.ids[place]]
        tau = scipy.optimize.brentq(lambda t, z=z: np.maximum(z - t, 0).sum() - 1, z.min() - 1, z.max())
        result = entries(rows, place)
        expected = dict(zip(problem.shared[shared].tolist(), np.maximum(z - tau, 0), strict=True))
        assert max(abs(result.get(old, 0.0) - weight) for old, weight in expected.items()) < 1e-5


def test_omp_reconstructs_the_donors_rows_and_preserves_a_linear_map(problem, folder) -> None:
    """If the old embeddings are a linear map of the donor's, the new rows are the same map of the donor's new rows."""
    table, shared = donor_rows(problem)
    mapping = np.random.default_rng(0).standard_normal((32, 24)) / 32**0.5
    old = torch.zeros(problem.source_rows, 24)
    old[problem.shared[shared]] = torch.from_numpy(table[shared] @ mapping).float()
    rows = omp.place(problem, omp.OmpConfig(donor=folder))
    new = apply.embeddings(assemble(problem, rows, "omp"), old)[rows.ids].double().numpy()
    assert np.abs(new - table[rows.ids] @ mapping).max() < 1e-3
    assert rows.counts.max() <= 33
    few = omp.place(problem, omp.OmpConfig(donor=folder, k=4))
    assert few.counts.max() == 4


# The donor


@pytest.mark.parametrize(
    ("family", "other"), [("wordpiece", "byte_level"), ("byte_level", "unigram"), ("unigram", "wordpiece")]
)
def test_a_donor_of_another_family_architecture_and_width_works(english, greek, tmp_path, family: str, other: str) -> None:
    problem, tokenizer = problem_of(family, english, greek), FAMILIES[other]([*greek, *english], 1000)
    model = GPT2Model(GPT2Config(vocab_size=len(tokenizer), n_embd=20, n_layer=1, n_head=2))
    result = donor.load(problem, save_model(tmp_path, model, tokenizer), "omp")
    theirs = canonical_tokens(tokenizer)
    token_of = {row.numpy().tobytes(): theirs[place] for place, row in enumerate(model.wte.weight.detach())}
    assert len(result.new_ids) > 30
    assert len(result.source_ids) > 30
    for ids, rows in ((result.new_ids, result.new_embeddings), (result.shared_ids, result.shared_embeddings)):
        assert [token_of[row.tobytes()].payload for row in rows.numpy()] == [problem.tokens[t].payload for t in ids]
    assert (result.source_ids == problem.shared[result.shared_ids]).all()
    assert len(set(result.source_ids.tolist())) == len(result.source_ids)
    for method in DONOR_METHODS:
        entry = METHODS[method]
        rows = entry.place(problem, entry.config(donor=str(tmp_path)))
        assert rows.ids.tolist() == result.new_ids.tolist()


def test_a_source_token_of_several_shared_tokens_counts_once_with_its_closest_match(problem, folder) -> None:
    loose = Problem(problem.source, problem.target, problem.texts, 3, levels=("exact", "bytes", "case", "start"))
    ordinary = [t for t in np.flatnonzero(loose.shared >= 0) if loose.tokens[t].role is None]
    assert len({loose.shared[t] for t in ordinary}) < len(ordinary)
    result = donor.load(loose, folder, "omp")
    assert sorted(result.source_ids.tolist()) == sorted({int(loose.shared[t]) for t in ordinary})
    for t in result.shared_ids:
        rivals = [loose.shared_provenance[other] for other in ordinary if loose.shared[other] == loose.shared[t]]
        assert loose.shared_provenance[t] == min(rivals)


def test_rows_that_were_never_trained_are_ignored(problem, tmp_path) -> None:
    model = tiny_model(problem.target)
    short, zero = problem.new[5], problem.new[6]
    shared = next(t for t in np.flatnonzero(problem.shared >= 0) if problem.tokens[t].role is None)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[short] *= 0.01
        table[[zero, shared]] = 0
    folder = save_model(tmp_path, model, problem.target)
    loaded = donor.load(problem, folder, "omp")
    assert sorted(set(problem.new.tolist()) - set(loaded.new_ids.tolist())) == sorted([short, zero])
    assert shared not in loaded.shared_ids
    plan = assemble(problem, omp.place(problem, omp.OmpConfig(donor=folder, k=4)), "omp")
    assert plan.provenance[[short, zero]].tolist() == [Provenance.RANDOM] * 2


@pytest.mark.parametrize("method", DONOR_METHODS)
def test_a_method_without_a_donor_names_the_key(problem, method: str) -> None:
    entry = METHODS[method]
    with pytest.raises(ConfigError, match=rf"transfer\.methods\.{method}\.donor: {method} needs a donor"):
        entry.place(problem, entry.config())


def test_a_folder_that_is_no_donor_is_rejected_by_name(problem, tmp_path) -> None:
    with pytest.raises(ModelError, match="model nowhere/at-all: neither a folder nor a model"):
        donor.load(problem, "nowhere/at-all", "omp")
    with pytest.raises(ModelError, match="has no tokenizer"):
        donor.load(problem, str(tmp_path), "omp")
    problem.target.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        donor.load(problem, str(tmp_path), "omp")


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_an_image_model_is_rejected_as_donor(problem, tmp_path, kind: str) -> None:
    if kind == "resnet":
        model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]))
    else:
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        model = ViTModel(ViTConfig(image_size=32, **sizes))
    with pytest.raises(ModelError, match=f"{type(model).__name__} has no token embeddings"):
        donor.load(problem, save_model(tmp_path, model, problem.target), "omp")


def test_fewer_rows_than_ids_and_rows_that_are_not_finite_are_rejected(problem, tmp_path) -> None:
    model = tiny_model(problem.source)
    with pytest.raises(ModelError, match=rf"have {len(problem.source):,} rows, but .* up to {len(problem.target) - 1:,}"):
        donor.load(problem, save_model(tmp_path, model, problem.target), "omp")
    model = tiny_model(problem.target)
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 3] = float("nan")
    with pytest.raises(ModelError, match="infinities or NaN"):
        donor.load(problem, save_model(tmp_path, model, problem.target), "omp")


def test_a_donor_of_another_script_is_rejected(problem, english, tmp_path) -> None:
    strange = FAMILIES["wordpiece"]([chr(0x10A0 + place % 30) * 3 for place in range(100)], 60)
    with pytest.raises(DataError, match="no ordinary token that the source and the new vocabulary also have"):
        donor.load(problem, save_model(tmp_path / "strange", tiny_model(strange), strange), "omp")
    with pytest.raises(DataError, match=f"none of the {len(problem.new):,} new tokens"):
        donor.load(problem, save_model(tmp_path / "old", tiny_model(problem.source), problem.source), "omp")


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (omp.OmpConfig, {"k": 0}, "got k=0,"),
        (omp.OmpConfig, {"ridge": -1.0}, r"got k=64, ridge=-1\.0"),
        (omp.OmpConfig, {"tolerance": 0.0}, r"and tolerance=0\.0"),
        (omp.OmpConfig, {"tolerance": 1.0}, r"and tolerance=1\.0"),
        (clp.ClpConfig, {"top": 0}, "top >= 1, got 0"),
    ],
)
def test_settings_out_of_range_are_rejected_with_the_value(config, settings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**settings)


def test_a_dense_plan_that_does_not_fit_in_memory_names_the_setting_to_change(problem, folder, monkeypatch) -> None:
    monkeypatch.setattr(clp, "MAX_BYTES", 32 * 10 * len(problem.new))
    with pytest.raises(ConfigError, match=r"transfer\.methods\.clp\.top: .* Set it to at most 10, or take clp_plus"):
        clp.place(problem, clp.ClpConfig(donor=folder))
    assert len(clp.place(problem, clp.ClpConfig(donor=folder, top=10)).ids) == len(problem.new)
