"""Rows solved from whole networks: exact where latency is additive, graceful where it is not."""

import math

import numpy as np
import pytest

from hwnas.errors import InvalidInput, MeasurementFailed
from hwnas.latency.solve import (
    NetworkTiming,
    _clear_terms,
    _left_out,
    _OfPrior,
    _scaled_prior,
    count_matrix,
    independent_rows,
    solve_rows,
)
from hwnas.latency.timing import Timing
from hwnas.ops import OpKey, OpSpec


def key(name):
    return OpKey(spec=OpSpec(kind=f"test.{name}"), input_shapes=((1, 4),))


KEYS = [key(name) for name in "abcd"]
TRUTH = dict(zip(KEYS, (1.0, 2.0, 4.0, 0.5), strict=True))


def network(counts, milliseconds=None, noise=1.0):
    counts = dict(zip(KEYS, counts, strict=True))
    counts = {k: n for k, n in counts.items() if n}
    ms = sum(TRUTH[k] * n for k, n in counts.items()) if milliseconds is None else milliseconds
    return NetworkTiming.of("n", counts, Timing(median_ms=ms * noise, spread_ms=0.0, count=1))


def test_independent_networks_give_the_rows_back_whatever_the_prior():
    networks = [network(counts) for counts in ([1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 0])]
    # a + d = 1.5, b + d = 2.5, c + d = 4.5, a + b + c = 7: so 3 d = 8.5 − 7, and so on.
    solution = solve_rows(networks, KEYS, dict(zip(KEYS, (3, 1, 1, 1), strict=True)))
    for k, timing in solution.rows.items():
        assert timing.median_ms == pytest.approx(TRUTH[k], rel=1e-6)
    assert solution.residual_percent < 1e-4
    assert [timing.count for timing in solution.rows.values()] == [2, 2, 2, 3]


def test_what_always_runs_together_is_split_in_proportion_to_the_prior():
    networks = [network([1, 1, 0, 0]), network([1, 1, 1, 0])]  # 3 and 7 ms
    rows = solve_rows(networks, KEYS[:3], {KEYS[0]: 1.0, KEYS[1]: 5.0, KEYS[2]: 5.0}).rows
    a, b, c = (rows[k].median_ms for k in KEYS[:3])
    assert a + b == pytest.approx(3.0, rel=1e-6)
    assert c == pytest.approx(4.0, rel=1e-6)
    assert b > 2 * a


def test_no_row_is_negative():
    # The second network is faster than the first though it runs one op more.
    networks = [network([2, 0, 0, 0], 2.0), network([2, 1, 0, 0], 1.9), network([0, 0, 1, 1], 4.5)]
    rows = solve_rows(networks, KEYS, dict.fromkeys(KEYS, 1.0)).rows
    assert all(timing.median_ms >= 0 for timing in rows.values())
    assert rows[KEYS[1]].median_ms < 0.05


def test_noise_is_met_by_the_prior_and_told():
    """Many noisy networks: rows near the truth, and the residual is the noise."""
    random = np.random.default_rng(0)
    networks = [
        network(counts, noise=random.normal(1.0, 0.02))
        for counts in random.integers(1, 5, size=(60, 4)).tolist()
    ]
    solution = solve_rows(networks, KEYS, {k: 1.3 * ms for k, ms in TRUTH.items()})
    for k, timing in solution.rows.items():
        assert timing.median_ms == pytest.approx(TRUTH[k], rel=0.1)
        # The stated deviation is no fiction: the truth lies within three of them.
        assert abs(timing.median_ms - TRUTH[k]) < 3 * timing.spread_ms
    assert 1.0 < solution.residual_percent < 3.0
    assert 1.5 < solution.left_out_percent < 3.0
    assert solution.misfit in (0.01, 0.02)


def test_a_device_that_is_not_additive_is_told_by_the_networks_left_out():
    """Each network takes a tenth longer for every further op: nothing additive can say so."""
    random = np.random.default_rng(0)
    counts = random.integers(0, 4, size=(40, 4))
    networks = [
        network(row.tolist(), float(row @ list(TRUTH.values())) * (1 + 0.1 * row.sum()))
        for row in counts
        if row.any()
    ]
    solution = solve_rows(networks, KEYS, TRUTH)
    assert solution.left_out_percent > 3.0
    assert all(timing.median_ms > 0 for timing in solution.rows.values())


def test_a_leaving_out_is_really_a_leaving_out():
    """The closed form equals solving again without each network, where the widths are the same."""
    random = np.random.default_rng(3)
    networks = [
        network(counts, noise=random.normal(1.0, 0.01))
        for counts in random.integers(1, 5, size=(12, 4)).tolist()
    ]
    solution = solve_rows(networks, KEYS, TRUTH)
    errors = []
    for left in range(len(networks)):
        others = networks[:left] + networks[left + 1 :]
        rows = solve_rows(others, KEYS, TRUTH).rows
        measured = networks[left].timing.median_ms
        errors.append(sum(rows[k].median_ms * n for k, n in networks[left].counts) / measured - 1)
    assert solution.left_out_percent == pytest.approx(100 * np.sqrt(np.mean(np.square(errors))), rel=0.3)


def test_the_likelihood_of_what_is_left_out_is_that_of_solving_again():
    """The closed form equals the density of each network under the posterior of the others, multiplied."""
    random = np.random.default_rng(5)
    shares = random.uniform(0.0, 0.4, size=(9, 5))
    kinds = np.eye(5)[[0, 0, 1, 1, 2]]
    spread = _OfPrior(kinds @ kinds.T, errors=np.full(5, 0.03)).covariance(0.1)
    misfits = (0.01, 0.2)
    for misfit, found in zip(misfits, _left_out(shares, spread, misfits), strict=True):
        total = 0.0
        for left in range(len(shares)):
            others, own = np.delete(shares, left, axis=0), shares[left]
            precision = np.linalg.inv(spread) + others.T @ others / misfit**2
            rows = 1 + np.linalg.solve(precision, others.T @ (1 - others.sum(axis=1))) / misfit**2
            variance = own @ np.linalg.solve(precision, own) + misfit**2
            error = 1 - own @ rows
            assert found.errors[left] == pytest.approx(error, rel=1e-6)
            total += -0.5 * (error**2 / variance + np.log(variance))
        assert found.log_likelihood == pytest.approx(total, rel=1e-9)


def test_what_is_known_of_the_prior_adds_up():
    """Rows of one kind have twice the width in common; each has its own and the error of its measurement."""
    covariance = _OfPrior(np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([0.0, 0.3])).covariance(0.1)
    assert covariance == pytest.approx(np.array([[0.05, 0.04], [0.04, 0.14]]))


def noisy_networks(seed, deviation=0.01, count=40):
    """Networks of noisy sums of TRUTH."""
    random = np.random.default_rng(seed)
    return [
        network(counts, noise=random.normal(1.0, deviation))
        for counts in random.integers(1, 5, size=(count, 4)).tolist()
    ]


@pytest.mark.parametrize("seed", range(6))
def test_rows_that_foretell_networks_as_they_are_alone_are_left_so(seed):
    """Else each build of a table would move them by its own noise."""
    solution = solve_rows(noisy_networks(seed), KEYS, {k: 2.0 * ms for k, ms in TRUTH.items()})
    assert solution.of_rows == 0.003
    for k, timing in solution.rows.items():
        assert timing.median_ms == pytest.approx(solution.level.scale * 2.0 * TRUTH[k], rel=0.008)


def test_a_row_gives_way_by_how_badly_it_was_measured_alone():
    """The one that is known to a tenth is mended, and the others stay where they were right."""
    networks, alone = noisy_networks(0, deviation=0.003), {**TRUTH, KEYS[0]: 1.2}
    told = solve_rows(networks, KEYS, alone, {KEYS[0]: 0.1}).rows
    untold = solve_rows(networks, KEYS, alone).rows
    for k, ms in TRUTH.items():
        assert told[k].median_ms == pytest.approx(ms, rel=0.01)
        assert abs(told[k].median_ms - ms) < abs(untold[k].median_ms - ms)


def test_a_row_is_no_surer_than_its_measurement_alone_where_networks_do_not_tell():
    """Two ops that always run together: their sum is known, and each to its own error."""
    networks = [network([1, 1, n, 0], noise=1 + 0.004 * (-1) ** n) for n in range(12)]
    rows = solve_rows(networks, KEYS[:3], TRUTH, {KEYS[0]: 0.05, KEYS[1]: 0.05}).rows
    for k in KEYS[:2]:
        assert 0.02 < rows[k].spread_ms / rows[k].median_ms < 0.06


def test_failed_networks_are_left_out():
    failed = NetworkTiming.of("f", {KEYS[0]: 1}, Timing.failed("lost"))
    with pytest.raises(MeasurementFailed, match="no network was timed"):
        solve_rows([failed], KEYS, TRUTH)
    rows = solve_rows([failed, network([1, 0, 0, 0])], KEYS[:1], TRUTH).rows
    assert rows[KEYS[0]].median_ms == pytest.approx(1.0)


def test_what_cannot_be_solved_is_said():
    with pytest.raises(InvalidInput, match=r"a network runs test\.d.*not among the 3 keys"):
        solve_rows([network([1, 0, 0, 1])], KEYS[:3], TRUTH)
    with pytest.raises(InvalidInput, match=r"the prior must give milliseconds above 0 .* none for test\.b"):
        solve_rows([network([1, 0, 0, 0])], KEYS, {**TRUTH, KEYS[1]: 0.0})


def test_independent_rows_are_the_fewest_that_span():
    matrix = np.array([[1, 0, 0], [2, 0, 0], [0, 3, 0], [1, 3, 0], [0, 0, 1]], dtype=float)
    assert sorted(independent_rows(matrix, np.ones(5))) == [1, 3, 4]
    assert len(independent_rows(matrix, np.ones(5), limit=2)) == 2
    # The size decides between rows that say the same: the first is half as long and costs a tenth.
    assert 0 in independent_rows(matrix, np.array([0.1, 1.0, 1.0, 1.0, 1.0]))
    random = np.random.default_rng(0)
    low = random.normal(size=(30, 5)) @ random.normal(size=(5, 20))
    assert len(independent_rows(low, np.ones(30))) == np.linalg.matrix_rank(low) == 5


def test_counts_as_a_matrix():
    matrix = count_matrix([{KEYS[0]: 2, KEYS[3]: 1}, {}], KEYS)
    assert matrix.tolist() == [[2, 0, 0, 1], [0, 0, 0, 0]]


def test_a_network_that_is_no_sum_is_left_out_and_named():
    """A compiler folded it away: it takes a fiftieth of its ops, and would spoil the rows of all."""
    random = np.random.default_rng(0)
    networks = [
        network(counts, noise=random.normal(1.0, 0.01))
        for counts in random.integers(1, 5, size=(30, 4)).tolist()
    ]
    folded = network([4, 4, 4, 4], 0.6).model_copy(update={"name": "folded"})
    solution = solve_rows([*networks, folded], KEYS, TRUTH)
    assert solution.outliers == ("folded",)
    for k, timing in solution.rows.items():
        assert timing.median_ms == pytest.approx(TRUTH[k], rel=0.15)


def test_what_is_not_complete_is_not_used():
    partial = NetworkTiming.of("p", {KEYS[0]: 1}, Timing.from_rounds([[9.0]], status="partial"))
    rows = solve_rows([partial, network([1, 0, 0, 0])], KEYS[:1], TRUTH).rows
    assert rows[KEYS[0]].median_ms == pytest.approx(1.0)
    with pytest.raises(InvalidInput, match=r"none for test\.b"):
        solve_rows([network([1, 0, 0, 0])], KEYS, {**TRUTH, KEYS[1]: float("inf")})


def test_what_a_kind_has_in_common_is_learnt_for_all_of_the_kind():
    """A runtime hides every concat: one that is too small to be seen by itself goes with the others."""
    convs = [OpKey(spec=OpSpec(kind="test.conv"), input_shapes=((1, n),)) for n in range(1, 7)]
    concats = [OpKey(spec=OpSpec(kind="test.concat"), input_shapes=((1, n),)) for n in range(1, 7)]
    alone = dict.fromkeys(convs, 1.0) | dict.fromkeys(concats, 0.5) | {concats[0]: 0.002}
    truth = {k: ms * (1.0 if k in convs else 0.1) for k, ms in alone.items()}
    random = np.random.default_rng(1)
    networks = []
    for counts in random.integers(0, 4, size=(40, 12)).tolist():
        run = {k: n for k, n in zip([*convs, *concats], counts, strict=True) if n}
        ms = sum(truth[k] * n for k, n in run.items()) * random.normal(1.0, 0.005)
        networks.append(NetworkTiming.of("n", run, Timing(median_ms=ms, spread_ms=0.01 * ms, count=3)))
    solution = solve_rows(networks, list(alone), alone)
    for k in concats:
        assert 0.02 < solution.rows[k].median_ms / alone[k] < 0.2
    # The width that this takes leaves the other kind where it is.
    assert solution.of_rows > 0.03
    for k in convs:
        assert solution.rows[k].median_ms / alone[k] == pytest.approx(1.0, abs=0.02)


def test_what_every_network_runs_has_a_level_of_its_own():
    """Stem and head take half of what they take alone, the rest all of it: large networks are foretold well.

    The solved networks run 4 to 10 further ops, and the one that is foretold 60.
    """
    stem, head, *rest = [OpKey(spec=OpSpec(kind="test.conv"), input_shapes=((1, n),)) for n in range(1, 13)]
    alone = {stem: 6.0, head: 4.0} | dict.fromkeys(rest, 1.0)
    random = np.random.default_rng(2)

    def fixed_and(counts):
        run = {stem: 1, head: 1} | {k: int(n) for k, n in zip(rest, counts, strict=True) if n}
        return run, 5.0 + sum(n for k, n in run.items() if k in rest)

    networks = []
    for size in random.integers(4, 11, size=20):
        run, ms = fixed_and(np.bincount(random.integers(0, 10, size=size), minlength=10))
        ms *= random.normal(1.0, 0.01)
        networks.append(NetworkTiming.of("n", run, Timing(median_ms=ms, spread_ms=0.01 * ms, count=3)))
    solution = solve_rows(networks, list(alone), alone)
    assert solution.level.scale == pytest.approx(1.0, rel=0.05)
    assert solution.level.fixed_scale == pytest.approx(0.5, rel=0.05)
    assert solution.level.call_ms == 0.0
    rows = solution.rows
    run, ms = fixed_and([6] * 10)
    assert sum(rows[k].median_ms * n for k, n in run.items()) == pytest.approx(ms, rel=0.04)
    # Nothing tells stem from head but their times alone.
    assert rows[stem].median_ms / rows[head].median_ms == pytest.approx(1.5, rel=0.01)
    assert rows[stem].median_ms + rows[head].median_ms == pytest.approx(5.0, rel=0.04)


def test_terms_that_noise_explains_are_not_believed():
    """A scale of the fixed ops' and a cost of a call are fitted where they stand out, and only there."""
    random = np.random.default_rng(4)
    terms = np.stack([np.ones(40), random.uniform(0.2, 0.6, 40), -random.uniform(3.0, 8.0, 40)], axis=1)
    noise = random.normal(0.0, 0.01, 40)
    assert _clear_terms(terms, 0.9 + noise).tolist() == [pytest.approx(0.9, abs=0.01), 0.0, 0.0]
    scale, fixed, call = _clear_terms(terms, terms @ [1.1, -0.3, 0.0] + noise)
    assert (scale, fixed) == (pytest.approx(1.1, abs=0.02), pytest.approx(-0.3, abs=0.05))
    assert call == 0.0
    found = _clear_terms(terms, terms @ [1.1, -0.3, 0.02] + noise)
    assert found == pytest.approx([1.1, -0.3, 0.02], rel=0.25)
    # One folded network tells nothing of the others, and five are too few for any but the scale.
    folded = np.concatenate([[0.02], 0.9 + noise[1:]])
    assert _clear_terms(terms, folded) == pytest.approx([0.9, 0.0, 0.0], abs=0.01)
    assert _clear_terms(terms[:5], (terms @ [1.1, -0.3, 0.02])[:5])[1:].tolist() == [0.0, 0.0]
    # A term that another one already says is none.
    assert _clear_terms(terms[:, [0, 0]], 0.9 + noise)[1] == 0.0
    # Nor is one that says nothing, or next to nothing; the other is found all the same.
    for nothing in (0.0, 0.3, 0.3 + 1e-9 * random.normal(size=40)):
        found = _clear_terms(
            np.stack([terms[:, 0], nothing + 0 * terms[:, 1], terms[:, 2]], axis=1),
            terms @ [1.1, 0.0, 0.02] + noise,
        )
        assert found == pytest.approx([1.1, 0.0, 0.02], abs=0.005)


@pytest.mark.parametrize(("errors", "is_believed"), [(4.0, False), (-4.0, False), (6.0, True), (-6.0, True)])
def test_a_term_is_believed_from_five_standard_errors_on(errors, is_believed):
    """What is known to a quarter only would be there in one build of a table and not in the next."""
    count, size = 40, 0.01
    term = np.tile([1.0, -1.0], count // 2)
    # At right angles to both columns, so that least squares leave all of it, and find the term itself.
    left = size * np.tile([1.0, 1.0, -1.0, -1.0], count // 4)
    standard_error = size * math.sqrt(count / (count - 2)) / math.sqrt(count)
    scale, found = _clear_terms(
        np.stack([np.ones(count), term], axis=1), 0.9 + errors * standard_error * term + left
    )
    assert scale == pytest.approx(0.9, abs=2 * size)
    assert found == pytest.approx(errors * standard_error if is_believed else 0.0)


@pytest.mark.parametrize(("call", "least"), [(0.1, 0.0), (-0.1, 0.0), (0.6, 0.05)])
@pytest.mark.parametrize("has_fixed", [True, False])
def test_a_prior_is_scaled_by_its_terms(call, least, has_fixed):
    """What a call costs alone is taken off, or added below zero; of the cheapest op a tenth is left."""
    random = np.random.default_rng(6)
    alone = np.array([8.0, 3.0, 2.0, 1.0, 0.5])
    counts = random.integers(0, 5, size=(30, 5)).astype(float)
    counts[:, 0] = 1.0 if has_fixed else counts[:, 0]
    truth = np.maximum(alone - call, least)
    truth[0] = 2.0 if has_fixed else truth[0]
    # The other networks leave the cheapest op out where it is held, so that sums are exact.
    counts[:, 4] *= call < 0.5
    scaled, level = _scaled_prior(counts, counts @ truth, alone)
    assert scaled == pytest.approx(truth, rel=1e-6)
    assert (level.scale, level.call_ms) == (pytest.approx(1.0), pytest.approx(call))
    assert level.fixed_scale == pytest.approx(0.25 if has_fixed else 1.0)


def test_a_prior_of_fixed_ops_alone_has_one_scale():
    scaled, level = _scaled_prior(np.ones((12, 3)), np.full(12, 3.0), np.array([1.0, 2.0, 3.0]))
    assert scaled == pytest.approx([0.5, 1.0, 1.5])
    assert (level.scale, level.fixed_scale, level.call_ms) == (pytest.approx(0.5), pytest.approx(0.5), 0.0)
