"""A packed network is loaded as it was trained; what is damaged or does not belong is refused."""

import json
import tomllib
from pathlib import Path

import pytest
import torch

import hwnas
from hwnas import zoo
from hwnas.cli.folder import RunFolder
from hwnas.cli.nets import find_net
from hwnas.core.weights import digest, save_weights
from hwnas.errors import CheckpointError, DataError, GenotypeError, InvalidInput
from hwnas.recipes import Recipe
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.segmentation import SyntheticScenes
from hwnas.segmentation.labels import Labelling
from hwnas.zoo.cards import Card, Score
from hwnas.zoo.entry import CARD, GENOTYPE, WEIGHTS
from hwnas.zoo.packing import pack, twin_score
from tests.deploy.nets import trained

SPACE = AutoRTNet.from_preset(
    "small", num_classes=8, cells=(1, 2, 2), init_channels=1, channel_multiplier=2, stem_channels=(2, 2),
    aggregation_width=2, head_width=4, head_dilations=(2,), height=32, width=64,
)  # fmt: skip
PER_CLASS = dict.fromkeys(SyntheticScenes.classes, 50.0)


@pytest.fixture
def run(tmp_path):
    """The folder of a training that never was."""
    folder = tmp_path / "run"
    genotype = SPACE.random(torch.Generator().manual_seed(0))
    genotype.save(folder / "genotype.json")
    save_weights(trained(SPACE.build(genotype)), folder / "weights.pt")
    (folder / "fit.json").write_text(json.dumps({"config": {"seed": 7, "epochs": 2}}))
    epochs = [
        {"event": "epoch", "seconds": 1.25},
        {"event": "step", "seconds": 9},
        {"event": "epoch", "seconds": 2},
    ]
    (folder / "fit.log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in epochs))
    return folder


def packed(run, **changes):
    dataset = SyntheticScenes("val", size=(32, 64), length=2)
    return pack(
        run,
        **{
            "name": "tiny-scenes", "out": run.parent / "zoo", "about": "a test", "data": "synthetic",
            "split": "train", "data_licence": "none: drawn", "labelling": Labelling.of(SyntheticScenes),
            "samples": torch.stack([dataset[0][0], dataset[1][0]]), "training_device": "a CPU",
        }
        | changes,
    )  # fmt: skip


def trained_network(run):
    genotype = hwnas.Genotype.load(run / "genotype.json")
    return trained(SPACE.build(genotype))


def test_a_packed_network_is_loaded_as_it_was_trained(run):
    entry = packed(run)
    network = hwnas.load(entry.folder)
    assert not network.training
    x = torch.randn(2, 3, 32, 64)
    state = hwnas.core.checkpoint.load_checkpoint(run / "weights.pt")["weights"]
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            # The nearest fp16 number: at most 2^-11 off, relative.
            assert tensor.dtype == torch.float32
            assert torch.allclose(tensor, state[name], rtol=2**-11, atol=1e-7)
    assert network(x).shape == (2, 8, 32, 64)
    assert sorted(path.name for path in entry.folder.iterdir()) == [
        "card.json", "genotype.json", "weights.safetensors",
    ]  # fmt: skip


def test_a_card_says_where_a_network_comes_from(run):
    (run / "eval.json").write_text(
        json.dumps(
            {"miou": 50.0, "per_class": PER_CLASS, "split": "val", "images": 9, "data": "synthetic:/x"}
        )
    )
    measured = {
        "median_ms": 1.5, "spread_ms": 0.1, "count": 30, "device": "a CPU", "backend": "onnxruntime",
        "precision": "fp32", "batch": 1, "threads": 1, "versions": {"onnxruntime": "1"}, "asked_ms": None,
    }  # fmt: skip
    (run / "measure.json").write_text(json.dumps(measured))
    card = zoo.card(packed(run).folder)
    assert card == Card.load(run.parent / "zoo/tiny-scenes/card.json")
    assert (card.seed, card.training_seconds, card.input_shape) == (7, 3.25, (3, 32, 64))
    assert card.recipe == {"fit": {"seed": 7, "epochs": 2}}
    assert card.scores == (Score(split="val", trained_on="train", images=9, miou=50.0, per_class=PER_CLASS),)
    assert (card.latency.median_ms, card.latency.device) == (1.5, "a CPU")
    assert card.labelling.classes == SyntheticScenes.classes
    assert 95 <= card.fp16_agreement_percent <= 100
    assert card.genotype == hwnas.Genotype.load(run / "genotype.json").short_id
    # Nothing of this machine's folders.
    assert str(run.parent) not in card.model_dump_json()


def test_the_stages_before_the_last_count(run):
    recipe = {"about": "x", "stages": [{"name": "first"}, {"name": "last"}]}
    (run / "recipe.json").write_text(json.dumps(recipe))
    (run / "first").mkdir()
    (run / "first/fit.log.jsonl").write_text(json.dumps({"event": "epoch", "seconds": 10}) + "\n")
    card = packed(run).card
    assert card.training_seconds == 13.25
    assert card.recipe == recipe


def test_a_teachers_training_counts(run):
    last = {"name": "last", "fit": {"distillation_weight": 1}}
    recipe = {"about": "x", "stages": [{"name": "first"}, last], "teacher": {"batch": 4}}
    (run / "recipe.json").write_text(json.dumps(recipe))
    for name, seconds in (("first", 10), ("teacher", 100)):
        (run / name).mkdir()
        (run / name / "fit.log.jsonl").write_text(json.dumps({"event": "epoch", "seconds": seconds}) + "\n")
    assert packed(run).card.training_seconds == 113.25
    (run / "recipe.json").write_text(json.dumps(recipe | {"stages": []}))
    with pytest.raises(DataError, match=r"recipe\.json is not a recipe:\n  stages"):
        packed(run)


def test_a_training_that_goes_on_from_an_entry_is_told_as_one(run):
    def trained(stage, **recipe):
        stages = [{"name": stage, "fit": {"distillation_weight": 1}}]
        (run / "recipe.json").write_text(json.dumps({"about": "x", "stages": stages, **recipe}))

    teacher = {"teacher": {"batch": 4}}
    (run / "teacher").mkdir()
    (run / "teacher/fit.log.jsonl").write_text(json.dumps({"event": "epoch", "seconds": 100}) + "\n")
    trained("first", **teacher)
    first = packed(run).card
    assert first.training_seconds == 103.25
    trained("second", **teacher)
    card = packed(run, before=first).card
    assert [stage["name"] for stage in card.recipe["stages"]] == ["first", "second"]
    assert Recipe.model_validate(card.recipe).teacher.batch == 4
    # The teacher, which both have, was trained once.
    assert card.training_seconds == 103.25 + 3.25
    trained("second", teacher={"batch": 5})
    assert packed(run, before=first).card.training_seconds == 103.25 + 103.25


def test_what_was_found_of_other_weights_is_refused(run):
    evaluated = {"miou": 50.0, "per_class": PER_CLASS, "split": "val", "images": 9, "weights": "of before"}
    (run / "eval.json").write_text(json.dumps(evaluated))
    with pytest.raises(InvalidInput, match=r"eval\.json is of other weights .*hwnas eval"):
        packed(run)
    ours = digest(RunFolder(run).network().state_dict())
    (run / "eval.json").write_text(json.dumps(evaluated | {"weights": ours}))
    assert packed(run).card.scores[0].miou == 50.0
    (run / "measure.json").write_text(json.dumps({"genotype": "0" * 8}))
    with pytest.raises(InvalidInput, match=r"measure\.json is of other genotype .*hwnas measure"):
        packed(run)


def test_what_cannot_be_one_training_is_refused(run):
    stages = [{"name": "first"}]
    (run / "recipe.json").write_text(json.dumps({"about": "x", "stages": stages}))
    first = packed(run).card
    with pytest.raises(DataError, match=r"tiny-scenes and then .*recipe\.json is not a recipe:"):
        packed(run, before=first)  # two stages of one name
    other = first.model_copy(update={"genotype": "0" * 8})
    with pytest.raises(InvalidInput, match=r"cannot have begun with the weights of tiny-scenes: its archit"):
        packed(run, before=other)
    (run / "recipe.json").unlink()
    with pytest.raises(InvalidInput, match="one training only if both were trained by recipes"):
        packed(run, before=first)


def test_a_score_on_training_images_is_no_score(run):
    (run / "eval.json").write_text(json.dumps({"miou": 50.0, "per_class": PER_CLASS, "split": "val"}))
    with pytest.raises(
        InvalidInput, match="is an evaluation on val, which is part of what it was trained on"
    ):
        packed(run, split="train+val")
    twin = Score(split="val", trained_on="train", miou=50.0, per_class=PER_CLASS)
    assert packed(run, split="train+val", scores=[twin]).card.scores == (twin,)


def test_a_split_that_was_trained_on_is_not_left_out(run):
    fitted = {"config": {"seed": 7, "epochs": 2}, "data": {"name": "synthetic", "train": "train+val"}}
    (run / "fit.json").write_text(json.dumps(fitted))
    (run / "eval.json").write_text(json.dumps({"miou": 50.0, "per_class": PER_CLASS, "split": "val"}))
    with pytest.raises(InvalidInput, match=r"the split train\+val, by its own files; got train"):
        packed(run, split="train")
    with pytest.raises(InvalidInput, match="is an evaluation on val, which is part of what it was trained"):
        packed(run, split="train+val")


@pytest.mark.parametrize(
    ("trained_on", "started_with"),
    [
        ({"split": "train", "stage": {}}, None),
        ({"train": "train"}, None),
        (None, {"data": {"train": "train"}}),
    ],
)
def test_a_twins_score_says_what_the_twin_was_trained_on(trained_on, started_with, run):
    twin = run.parent / "twin"
    twin.mkdir()
    (twin / "genotype.json").write_bytes((run / "genotype.json").read_bytes())
    (twin / "fit.json").write_text(json.dumps({"config": {"seed": 8}, "data": trained_on}))
    evaluated = {"miou": 50.0, "per_class": PER_CLASS, "split": "val", "images": 9}
    (twin / "eval.json").write_text(json.dumps(evaluated))
    if started_with is not None:
        with pytest.raises(DataError, match="says which split it was trained on"):
            twin_score(run, twin)
        (twin / "run.json").write_text(json.dumps(started_with))
    score = twin_score(run, twin)
    assert score == Score(split="val", trained_on="train", images=9, miou=50.0, per_class=PER_CLASS)
    assert packed(run, split="train+val", scores=[score]).card.scores == (score,)
    (twin / "eval.json").write_text(json.dumps(evaluated | {"split": "train"}))
    with pytest.raises(InvalidInput, match="is an evaluation on train, which is part of what it was trained"):
        twin_score(run, twin)
    SPACE.random(torch.Generator().manual_seed(5)).save(twin / "genotype.json")
    with pytest.raises(InvalidInput, match="is no twin of"):
        twin_score(run, twin)


def test_a_packing_that_fails_leaves_the_old_entry(run, monkeypatch):
    entry = packed(run)
    rename = Path.rename

    def failing(self, target):
        if self.name == "new":
            raise OSError("the disk is full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="the disk is full"):
        packed(run, about="better")
    assert zoo.card(entry.folder).about == "a test"
    hwnas.load(entry.folder)
    assert [path.name for path in entry.folder.parent.iterdir()] == ["tiny-scenes"]


def test_packing_again_replaces_and_leaves_nothing_behind(run):
    packed(run)
    assert packed(run, about="better").card.about == "better"
    assert [path.name for path in (run.parent / "zoo").iterdir()] == ["tiny-scenes"]


def test_a_folder_that_is_no_entry_is_not_replaced(run):
    (run.parent / "zoo/tiny-scenes").mkdir(parents=True)
    (run.parent / "zoo/tiny-scenes/mine.txt").touch()
    with pytest.raises(InvalidInput, match="is there and is no entry of the zoo"):
        packed(run)
    assert (run.parent / "zoo/tiny-scenes/mine.txt").is_file()


def test_values_beyond_fp16_are_refused(run):
    network = trained_network(run)
    next(iter(network.parameters())).data.flatten()[0] = 1e6
    save_weights(network, run / "weights.pt")
    with pytest.raises(InvalidInput, match=r"holds? values beyond fp16's 65504"):
        packed(run)


def test_what_cannot_be_packed_is_named(run, monkeypatch):
    with pytest.raises(InvalidInput, match=r'called like autortnet-a-camvid .* got "../x"'):
        packed(run, name="../x")
    monkeypatch.setattr("hwnas.zoo.packing.LARGEST_BYTES", 2**10)
    with pytest.raises(InvalidInput, match="and an entry of the zoo at most"):
        packed(run)
    (run / "fit.json").unlink()
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"no file .*fit\.json"):
        packed(run)
    (run / "weights.pt").unlink()
    with pytest.raises(CheckpointError, match="hwnas fit"):
        packed(run)
    assert not (run.parent / "zoo").exists()


def test_damaged_weights_are_not_loaded(run):
    entry = packed(run)
    path = entry.folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged: its sha256 is"):
        hwnas.load(entry.folder)
    path.unlink()
    with pytest.raises(DataError, match="no weights at"):
        hwnas.load(entry.folder)


def test_another_genotype_or_card_is_refused(run):
    entry = packed(run)
    other = SPACE.random(torch.Generator().manual_seed(5))
    assert other.short_id != entry.genotype.short_id
    other.save(entry.folder / "genotype.json")
    with pytest.raises(DataError, match="and the card speaks of"):
        hwnas.load(entry.folder)
    card = json.loads((entry.folder / "card.json").read_text())
    (entry.folder / "card.json").write_text(json.dumps(card | {"schema_version": 2}))
    with pytest.raises(DataError, match="has schema 2, this hwnas reads up to 1"):
        zoo.card(entry.folder)
    (entry.folder / "card.json").write_text(json.dumps(card | {"seed": "x"}))
    with pytest.raises(DataError, match="is not a card of a network:\n  seed"):
        zoo.card(entry.folder)


def test_a_folder_from_elsewhere_imports_nothing(run, tmp_path, monkeypatch):
    entry = packed(run)
    (tmp_path / "zoo_trap.py").write_text("raise AssertionError('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    other = entry.genotype.model_copy(update={"space": "zoo_trap:Space"})
    other.save(entry.folder / "genotype.json")
    card = entry.card.model_copy(update={"genotype": other.short_id})
    (entry.folder / "card.json").write_text(card.model_dump_json())
    with pytest.raises(GenotypeError, match="If you trust zoo_trap, import it first"):
        hwnas.load(entry.folder)
    # The verbs load in the same way.
    with pytest.raises(GenotypeError, match="import it first"):
        find_net(str(entry.folder))
    with pytest.raises(GenotypeError, match="import it first"):
        RunFolder(entry.folder).network(trained=False)


def test_an_unknown_name_lists_the_known_ones(run, monkeypatch):
    packed(run)
    monkeypatch.setattr("hwnas.zoo._SHIPPED", run.parent / "zoo")
    assert zoo.names() == ["tiny-scenes"]
    assert hwnas.load("tiny-scenes")(torch.zeros(1, 3, 32, 64)).shape == (1, 8, 32, 64)
    with pytest.raises(InvalidInput, match='the zoo has no network "tiny"; it has: tiny-scenes'):
        hwnas.load("tiny")


def test_entries_are_part_of_the_distribution():
    project = tomllib.loads((Path(hwnas.__file__).parents[1] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["hwnas"]
    for name in (CARD, GENOTYPE, WEIGHTS):
        assert any(Path(f"zoo/any-name/{name}").match(pattern) for pattern in patterns), name


def test_every_network_that_comes_with_hwnas_is_sound():
    for name in zoo.names():
        card = zoo.card(name)
        assert card.name == name and card.size_bytes <= 12 * 2**20
        assert card.latency is not None
        assert all(set(score.per_class) and score.images for score in card.scores) and card.scores
        hwnas.load(name)
