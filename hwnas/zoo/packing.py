"""From a trained run to an entry of the zoo."""

from __future__ import annotations

import copy
import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from hwnas.core.genotype import Genotype
from hwnas.core.runlog import read_log
from hwnas.core.weights import digest, load_weights
from hwnas.deploy.export import agreement_percent
from hwnas.errors import CheckpointError, DataError, InvalidInput, refusals
from hwnas.files import read_json, write_json
from hwnas.latency.backend import host_versions
from hwnas.names import space_of
from hwnas.recipes.recipe import Recipe
from hwnas.segmentation.labels import Labelling
from hwnas.zoo.cards import NAME_PATTERN, Card, Latency, Score
from hwnas.zoo.entry import CARD, GENOTYPE, WEIGHTS, Entry, fp16_weights, put_weights

LARGEST_BYTES = 12 * 2**20
"""An entry's weights may not be larger: all of them come with every installation."""


def pack(
    run: str | Path,
    name: str,
    *,
    out: str | Path,
    about: str,
    data: str,
    split: str,
    data_licence: str,
    labelling: Labelling,
    samples: Tensor,
    scores: Sequence[Score] = (),
    training_device: str,
    before: Card | None = None,
) -> Entry:
    """Make ``out/name`` of a run's folder; an entry that is there already is replaced.

    A reader sees an entry whole or not at all: while one replaces another there is none for a moment. What
    fails leaves the old one.

    Args:
        run: has ``genotype.json``, ``weights.pt``, ``fit.json`` and ``fit.log.jsonl``; ``recipe.json`` and
            ``measure.json`` are taken where they are there, and ``eval.json`` where no ``scores`` are given
            and the run's evaluation held images out.
        name: lower case, digits and hyphens.
        out: the zoo's folder, or any other.
        about: one line that says what the network is.
        data: name of the data set, without its place.
        split: what was trained on.
        data_licence: under what terms the data are to be had.
        labelling: of the data.
        samples: normalised images, ``[N, 3, H, W]``, on which the fp16 weights are compared.
        scores: evaluations; a twin's (:func:`twin_score`), where the network was trained on everything.
        training_device: what the training ran on.
        before: of the network whose weights the run's first stage began with, if they are to be told of as
            one training: its stages and its seconds come before the run's.

    Raises:
        InvalidInput: a name that is none, weights beyond fp16's range, or too large; a split that leaves out
            some of what the run's own files say; an evaluation of other weights or a measurement of another
            architecture; ``before`` is of another architecture, or it or the run has no recipe with stages.
        GenotypeError, CheckpointError, DataError: the run's folder lacks a file, or has a damaged one.
    """
    from safetensors.torch import save

    run, out = Path(run), Path(out)
    if not re.match(NAME_PATTERN, name):
        raise InvalidInput(f'a network is called like autortnet-a-camvid (a-z, 0-9, hyphens); got "{name}".')
    genotype = Genotype.load(run / GENOTYPE)
    network = space_of(genotype).build(genotype).eval()
    if not (run / "weights.pt").is_file():
        raise CheckpointError(f"no weights at {run / 'weights.pt'}; train them first:  hwnas fit {run}")
    load_weights(network, run / "weights.pt")
    weights = fp16_weights(network)
    content: bytes = save(weights)
    if len(content) > LARGEST_BYTES:
        raise InvalidInput(
            f"{name} takes {len(content) / 2**20:.1f} MiB in fp16, and an entry of the zoo at most "
            f"{LARGEST_BYTES >> 20}."
        )
    rounded = copy.deepcopy(network)
    put_weights(rounded, weights, name)
    fitted = _read(run / "fit.json")
    _, said = trained_on(run)
    if said is not None and not set(said.split("+")) <= set(split.split("+")):
        raise InvalidInput(f"{run} was trained on the split {said}, by its own files; got {split}.")
    recipe = _read(run / "recipe.json") if (run / "recipe.json").is_file() else {"fit": fitted["config"]}
    seconds = _seconds(run, recipe)
    if before is not None:
        recipe, seconds = _one_training(before, genotype, run, recipe)
    if not scores and (run / "eval.json").is_file():
        _refuse_other(run / "eval.json", "weights", digest(network.state_dict()), f"hwnas eval {run}")
        scores = [_score(run / "eval.json", split)]
    latency = None
    if (run / "measure.json").is_file():
        _refuse_other(run / "measure.json", "genotype", genotype.short_id, f"hwnas measure {run}")
        latency = _read(run / "measure.json")
    try:
        card = Card(
            name=name,
            about=about,
            genotype=genotype.short_id,
            input_shape=tuple(samples.shape[1:]),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            labelling=labelling,
            data=data,
            split=split,
            data_licence=data_licence,
            seed=fitted["config"]["seed"],
            recipe=recipe,
            training_device=training_device,
            training_seconds=round(seconds, 2),
            scores=tuple(scores),
            latency=Latency.model_validate(latency) if latency is not None else None,
            fp16_agreement_percent=agreement_percent(network, rounded, samples),
            fp16_agreement_images=len(samples),
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            versions={**host_versions(), "torch": torch.__version__},
        )
    except ValidationError as error:
        raise DataError(f"no card can be made of {run}:\n{refusals(error)}") from error
    out.mkdir(parents=True, exist_ok=True)
    if (out / name).exists() and not (out / name / CARD).is_file():
        raise InvalidInput(f"{out / name} is there and is no entry of the zoo; give another --out.")
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=out) as aside:
        fresh, old = Path(aside) / "new", Path(aside) / "old"
        fresh.mkdir()
        genotype.save(fresh / GENOTYPE)
        (fresh / WEIGHTS).write_bytes(content)
        write_json(fresh / CARD, card)
        if (out / name).exists():
            # A folder cannot take the place of one that holds files: first the old one goes.
            (out / name).rename(old)
        try:
            fresh.rename(out / name)
        except BaseException:
            if old.exists():
                old.rename(out / name)
            raise
    return Entry(out / name)


def twin_score(run: str | Path, twin: str | Path) -> Score:
    """The score of the same architecture, trained in ``twin`` on less, on images that it held out.

    Args:
        run: the folder of the training that is to be packed.
        twin: has ``genotype.json``, ``eval.json`` and ``fit.json``; ``run.json`` says what was trained on
            where ``fit.json`` does not.

    Raises:
        InvalidInput: it is of another architecture, or was evaluated on what it was trained on.
        GenotypeError, DataError: either folder lacks a file, or has a damaged one; or nothing says what the
            twin was trained on.
    """
    run, twin = Path(run), Path(twin)
    ours, theirs = (Genotype.load(folder / GENOTYPE).short_id for folder in (run, twin))
    if ours != theirs:
        raise InvalidInput(f"{twin} is no twin of {run}: its architecture is {theirs}, not {ours}.")
    _, split = trained_on(twin)
    if split is None:
        raise DataError(f"neither fit.json nor run.json in {twin} says which split it was trained on.")
    return _score(twin / "eval.json", split)


def trained_on(run: str | Path) -> tuple[str | None, str | None]:
    """The data set that a training was on, without its place, and the split; None where nothing says.

    Raises:
        DataError: there is no ``fit.json``, or a damaged file.
    """
    run = Path(run)
    trained = _read(run / "fit.json").get("data") or {}
    began = _read(run / "run.json").get("data", {}) if (run / "run.json").is_file() else {}
    # A recipe's training calls them so, a plain one keeps the fields of its data.
    name = trained.get("data") or trained.get("name") or began.get("name")
    split = trained.get("split") or trained.get("train") or began.get("train")
    return None if name is None else name.partition(":")[0], split


def _refuse_other(path: Path, name: str, ours: str, remedy: str) -> None:
    """Refuse what a file says of another network; one that does not name its network is taken at its word.

    Raises:
        InvalidInput: it is of another.
    """
    theirs = _read(path).get(name)
    if theirs is not None and theirs != ours:
        raise InvalidInput(f"{path} is of other {name} than this network's: make it anew:  {remedy}")


def _score(path: Path, split: str) -> Score:
    """What ``hwnas eval`` found; nothing is worth a score that was trained on."""
    found = _read(path)
    try:
        score = Score(
            split=found.get("split", "val"),
            trained_on=split,
            images=found.get("images"),
            miou=found["miou"],
            per_class=found["per_class"],
        )
    except (KeyError, ValidationError) as error:
        raise DataError(f"{path} holds no evaluation of a segmentation network: {error}") from error
    if set(score.split.split("+")) & set(split.split("+")):
        raise InvalidInput(
            f"{path} is an evaluation on {score.split}, which is part of what it was trained on, {split}. "
            "Remove it, or give the scores of a twin that held images out."
        )
    return score


def _one_training(
    before: Card, genotype: Genotype, run: Path, recipe: dict[str, Any]
) -> tuple[dict[str, Any], float]:
    """Recipe and seconds of two trainings of which one went on with the other's weights."""
    if before.genotype != genotype.short_id:
        raise InvalidInput(
            f"{run} cannot have begun with the weights of {before.name}: its architecture is "
            f"{genotype.short_id}, theirs {before.genotype}."
        )
    if "stages" not in recipe or "stages" not in before.recipe:
        raise InvalidInput(f"{run} and {before.name} are one training only if both were trained by recipes.")
    ours, theirs = _recipe(run / "recipe.json", recipe), _recipe(before.name, before.recipe)
    stages = [stage.model_dump(mode="json") for stage in (*theirs.stages, *ours.stages)]
    whole = {**recipe, "stages": stages}
    _recipe(f"{before.name} and then {run / 'recipe.json'}", whole)
    # A teacher that both have was trained once.
    own = {**recipe, "teacher": None} if ours.teacher == theirs.teacher else recipe
    return whole, before.training_seconds + _seconds(run, own)


def _recipe(place: str | Path, values: Mapping[str, Any]) -> Recipe:
    """A run's, or a card's.

    Raises:
        DataError: it is none.
    """
    try:
        # What an earlier version did not write has the value that was then meant.
        return Recipe.model_validate({"about": "", **values})
    except ValidationError as error:
        raise DataError(f"{place} is not a recipe:\n{refusals(error)}") from error


def _seconds(run: Path, recipe: dict[str, Any]) -> float:
    """Of all epochs; what is trained before the last stage, a teacher too, has folders of its own.

    Raises:
        DataError: ``recipe.json`` is no recipe.
    """
    folders = [run]
    if "stages" in recipe:
        stages = _recipe(run / "recipe.json", recipe).all_stages
        folders = [*(run / stage.name for stage in stages[:-1]), run]
    events = [event for folder in folders for event in read_log(folder / "fit.log.jsonl")]
    seconds: float = sum(event.get("seconds", 0.0) for event in events if event["event"] == "epoch")
    return seconds


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"no file {path}; is {path.parent} the folder of a training?")
    return read_json(path)
