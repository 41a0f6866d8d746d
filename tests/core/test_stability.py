import json
import math

import pytest
import torch

from hwnas import (
    BaselineConfig,
    FakeBackend,
    SearchConfig,
    SearchData,
    SharedWeights,
    Stability,
    search,
    stability,
)
from hwnas.core.cost_ranges import ranges
from hwnas.core.stability import SeedResult, Spread
from hwnas.errors import InvalidInput
from hwnas.files import write_json
from hwnas.latency.formula import default_formula

from .nets import ChoiceInDepth, images, table_of
from .test_baseline import CHAIN

CONFIG = SearchConfig(device="cpu", epochs=1, arch_lr=0.3)


def result(space, seed, predicted_ms=None, score=None, **assignment):
    return SeedResult(seed=seed, genotype=space.genotype(assignment), predicted_ms=predicted_ms, score=score)


def test_agreement_is_the_share_of_pairs_that_decide_alike():
    space = ChoiceInDepth()
    found = Stability.of(
        space,
        [
            result(space, 0, 1.0, 50.0, d=0, a=0),
            result(space, 1, 2.0, 70.0, d=1, a=0, b=1),
            result(space, 2, 6.0, 60.0, d=1, a=1, b=1),
        ],
    )
    # Pairs 01, 02, 12: a alike in the first; d in the last; b, which the first network has not, in the last.
    # c matters in none of them.
    assert found.agreement == {"d": 1 / 3, "a": 1 / 3, "b": 1 / 3}
    assert found.mean_agreement == pytest.approx(1 / 3)
    # At random d is 0, 1 or 2, a and b are either option where they matter: a always, b with d = 1 and 2.
    # b is alike if both have it (2/3 · 2/3 of pairs, and half of these) or neither has (1/3 · 1/3).
    b = 4 / 9 / 2 + 1 / 9
    assert found.by_chance == pytest.approx((1 / 3 + 1 / 2 + b) / 3, abs=0.02)
    assert found.networks == 3
    # Deviations −2, −1, 3: 14 / 2 = 7.
    assert found.predicted_ms == Spread(mean=3.0, deviation=7**0.5, least=1.0, greatest=6.0)
    assert found.score.mean == 60.0
    assert found.best.seed == 1


def test_equal_networks_agree_in_all():
    space = ChoiceInDepth()
    found = Stability.of(space, [result(space, seed, d=0, a=1) for seed in range(3)])
    assert set(found.agreement.values()) == {1.0}
    assert found.networks == 1
    assert found.predicted_ms is None
    assert found.score is None
    assert found.best.seed == 0


@pytest.mark.parametrize("seeds", [(), (1,), (2, 2)])
def test_fewer_than_two_different_seeds_are_refused(seeds):
    with pytest.raises(InvalidInput, match="at least two seeds, all different"):
        stability(CHAIN, None, SearchData(images(2)), CONFIG, seeds=seeds)


def test_each_seed_is_the_search_that_it_would_be_alone(tmp_path):
    data = SearchData(images(4), val=images(2))
    seen = []
    found = stability(
        CHAIN, table_of(CHAIN), data, CONFIG, seeds=(3, 5), out=tmp_path,
        on_progress=lambda seed, progress: seen.append(seed),
    )  # fmt: skip
    assert set(seen) == {3, 5}
    for seed, said in zip((3, 5), found.results, strict=True):
        alone = search(CHAIN, table_of(CHAIN), data, CONFIG.model_copy(update={"seed": seed}))
        assert said.genotype == alone.genotype
        assert said.predicted_ms == alone.predicted_ms
        assert said.score == alone.scores["accuracy"]
        assert (tmp_path / f"seed-{seed}" / "genotype.json").is_file()
    assert Stability.model_validate_json((tmp_path / "stability.json").read_text()) == found


def test_what_each_seed_finds_for_a_target_is_measured():
    table = table_of(CHAIN, default_formula)
    target_ms = ranges(CHAIN, table)["latency_ms"].median
    config = CONFIG.model_copy(update={"target_ms": target_ms})
    data = SearchData(images(4))
    found = stability(CHAIN, table, data, config, seeds=(3, 5), backend=FakeBackend(default_formula))
    for said in found.results:
        assert said.met
        assert said.measured_ms == pytest.approx(said.predicted_ms, rel=1e-4)
    with pytest.raises(InvalidInput, match="a baseline has nothing measured"):
        stability(CHAIN, table, data, BaselineConfig(), backend=FakeBackend(default_formula))


def test_a_stopped_one_goes_on(tmp_path):
    data = SearchData(images(4), val=images(2))
    whole = stability(CHAIN, None, data, CONFIG, seeds=(0, 1, 2))

    class Stop(Exception):
        pass

    def stop(seed, progress):
        if seed == 1 and progress.step == 2:
            raise Stop

    with pytest.raises(Stop):
        stability(CHAIN, None, data, CONFIG, seeds=(0, 1, 2), out=tmp_path, on_progress=stop)
    assert stability(CHAIN, None, data, CONFIG, seeds=(0, 1, 2), out=tmp_path, resume=True) == whole


def test_baselines_too(tmp_path):
    config = BaselineConfig(scoring=SharedWeights(supernet=CONFIG), trials=2)
    found = stability(CHAIN, None, SearchData(images(2), val=images(1)), config, seeds=(0, 1), out=tmp_path)
    kept = [json.loads((tmp_path / f"seed-{seed}" / "baseline.json").read_text()) for seed in (0, 1)]
    assert [values["config"]["scoring"]["supernet"]["seed"] for values in kept] == [0, 1]
    assert torch.isfinite(torch.tensor([said.score for said in found.results])).all()


def test_a_score_that_is_not_finite_is_counted_and_left_out_of_the_rest(tmp_path):
    space = ChoiceInDepth()

    def of(*scores):
        results = [result(space, n, score=score, d=0, a=0) for n, score in enumerate(scores)]
        return Stability.of(space, results)

    found = of(1.0, -math.inf, 3.0)
    assert found.score == Spread(mean=2.0, deviation=2**0.5, least=1.0, greatest=3.0, not_finite=1)
    assert found.best.seed == 2
    assert of(1.0, -math.inf).score == Spread(mean=1.0, deviation=0.0, least=1.0, greatest=1.0, not_finite=1)
    assert of(-math.inf, -math.inf).score is None
    write_json(tmp_path / "stability.json", found)
    again = Stability.model_validate_json((tmp_path / "stability.json").read_text())
    # JSON has no word for it.
    assert [said.score for said in again.results] == [1.0, None, 3.0]
    assert again.score == found.score


def test_a_report_from_before_scores_were_counted_still_loads():
    values = {"mean": 2.0, "deviation": 1.0, "least": 1.0, "greatest": 3.0}
    assert Spread.model_validate(values).not_finite == 0


@pytest.mark.parametrize(
    ("taken", "resume"),
    [
        *((name, resume) for name in ("search", "baseline", "sweep") for resume in (False, True)),
        ("seed-1/search", False),
        ("seed-1/baseline", False),
        ("seed-1/baseline", True),
    ],
)
def test_a_folder_that_is_taken_is_refused_before_any_seed_is_trained(tmp_path, taken, resume):
    path = tmp_path / f"{taken}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    with pytest.raises(InvalidInput, match=f"{path.parent} holds a {path.stem} already"):
        stability(CHAIN, None, SearchData(images(2)), CONFIG, seeds=(0, 1), out=tmp_path, resume=resume)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
