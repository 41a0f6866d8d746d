"""Names and classes in the place of objects are refused, with the call that makes the object."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hwnas
from hwnas import (
    FakeBackend,
    FitConfig,
    SearchConfig,
    SearchData,
    baseline,
    evaluate,
    fit,
    profile,
    search,
    stability,
    sweep,
    verify,
)
from hwnas.core.profiling import estimate
from hwnas.errors import InvalidInput
from hwnas.latency.fake import fake_table
from hwnas.search_spaces.chain import Chain

CHAIN = Chain(size=8, channels=4, num_classes=4, depth=1)
TABLE = fake_table(CHAIN.record().keys(), input_shape=CHAIN.input_shape())
BATCHES = [(torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.long))]
DATA = SearchData(BATCHES, val=BATCHES)
GENOTYPE = CHAIN.random(torch.Generator().manual_seed(0))


SPACE = r'space must be a SearchSpace, got the text "chain": pass hwnas\.find_space\("chain"\)\(\)\.'
LUT = (
    r'the table must be a LatencyTable, got the text "t.json": pass hwnas\.LatencyTable\.load\("t\.json"\)\.'
)
NAMED = (
    r'data must be SearchData, got the text "camvid:DIR": pass hwnas\.SearchData\(train=loader\); loader = '
    r'.*training_loader\(.*open_dataset\("camvid:DIR"\), batch_size=8\)'
)
BACKEND = r'backend must be a LatencyBackend, got the text "fake": pass hwnas\.find_backend\("fake"\)'
BATCHES_NAMED = r'must be batches, got the text "camvid:DIR": pass a loader; loader = hwnas'
TARGET = SearchConfig(target_ms=9.0)


def network():
    return CHAIN.build(GENOTYPE)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: search("chain", TABLE, DATA), SPACE),
        (lambda: baseline("chain", TABLE, DATA), SPACE),
        (lambda: sweep("chain", TABLE, DATA, targets_ms=(1.0, 2.0), out="nowhere"), SPACE),
        (lambda: stability("chain", TABLE, DATA), SPACE),
        (lambda: profile("chain", FakeBackend()), SPACE),
        (lambda: estimate("chain", FakeBackend()), SPACE),
        (lambda: verify(TABLE, "chain", FakeBackend()), SPACE),
        (lambda: search(Chain, TABLE, DATA), r"got the class Chain: pass an instance, Chain\(…\)"),
        (lambda: search(GENOTYPE, TABLE, DATA), r"got the genotype \w{8}: pass hwnas\.space_of\(genotype\)"),
        (lambda: search(CHAIN, "t.json", DATA), LUT),
        (
            lambda: search(CHAIN, Path("t.json"), DATA),
            r'got the path "t\.json": pass hwnas\.LatencyTable\.load',
        ),
        (lambda: baseline(CHAIN, "t.json", DATA), LUT),
        (lambda: sweep(CHAIN, "t.json", DATA, targets_ms=(1.0, 2.0), out="nowhere"), LUT),
        (lambda: verify("t.json", CHAIN, FakeBackend()), LUT),
        (lambda: search(CHAIN, TABLE, "camvid:DIR"), NAMED),
        (lambda: search(CHAIN, TABLE, BATCHES), r"got a list: pass hwnas\.SearchData\(train=batches\)"),
        (lambda: baseline(CHAIN, TABLE, "camvid:DIR"), NAMED),
        (lambda: search(CHAIN, TABLE, DATA, TARGET, backend="fake"), BACKEND),
        (lambda: profile(CHAIN, "fake"), BACKEND),
        (lambda: profile(CHAIN, FakeBackend), r'got the class FakeBackend: .* FakeBackend\(device="auto"\)'),
        (lambda: verify(TABLE, CHAIN, "fake"), BACKEND),
        (lambda: SearchData("camvid:DIR"), "train " + BATCHES_NAMED),
        (lambda: SearchData(BATCHES, val="camvid:DIR"), "val " + BATCHES_NAMED),
        (lambda: fit(network(), "camvid:DIR", loss=CHAIN.fit_loss), "train " + BATCHES_NAMED),
        (lambda: fit("a", BATCHES, loss=CHAIN.fit_loss), r'got the text "a": pass hwnas\.load\("a"\)'),
        (lambda: evaluate(network(), "camvid:DIR", CHAIN.metric()), "data " + BATCHES_NAMED),
        (lambda: evaluate(GENOTYPE, BATCHES, CHAIN.metric()), r"space_of\(genotype\)\.build\(genotype\)"),
    ],
)
def test_what_is_no_object_is_refused_with_the_call_that_makes_one(call, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=says):
        call()
    assert not list(tmp_path.iterdir())


def test_the_calls_work_as_they_are_written():
    code = """
import hwnas
space = hwnas.find_space("chain")()
genotype = space.genotype({name: 0 for name in space.choices()})
assert hwnas.space_of(genotype) == space
assert hwnas.find_backend("fake")(device="auto").name == "fake"
scenes = hwnas.segmentation.open_dataset("synthetic")
assert len(hwnas.segmentation.training_loader(scenes, batch_size=8)) > 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_an_object_is_not_refused():
    result = search(CHAIN, TABLE, DATA, SearchConfig(epochs=1, device="cpu"))
    assert isinstance(result, hwnas.SearchResult)
    fit(network(), BATCHES * 2, loss=CHAIN.fit_loss, config=FitConfig(epochs=1, device="cpu"))
