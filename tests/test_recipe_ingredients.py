"""The benchmark of a recipe's ingredients, on pictures of its own and a network of the smallest kind."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hwnas.search_spaces.autortnet import AutoRTNet

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import recipe_ingredients as benchmark

SPACE = AutoRTNet(
    height=32, width=64, cells=(1, 1, 1), init_channels=1, channel_multiplier=2, stem_channels=(2, 2),
    aggregation_width=2, head_width=4, head_dilations=(2,),
)  # fmt: skip


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def data(tmp_path):
    label = np.arange(8, dtype=np.uint8).repeat(4)[:, None].repeat(64, 1)
    image = label[..., None].repeat(3, 2) * 20
    for name in ("0001TP_1", "0001TP_2", "0006R0_1", "0006R0_2", "0016E5_1"):
        write(tmp_path / f"camvid/images/train/{name}.png", image)
        write(tmp_path / f"camvid/labels/train/{name}.png", label)
    write(tmp_path / "camvid/images/val/0016E5_2.png", image)
    write(tmp_path / "camvid/labels/val/0016E5_2.png", label)
    for number in range(2):
        write(tmp_path / f"idd_lite/leftImg8bit/train/0/{number}_image.jpg", image)
        write(tmp_path / f"idd_lite/gtFine/train/0/{number}_label.png", label % 7)
    return tmp_path


def arguments(data):
    SPACE.random(torch.Generator().manual_seed(0)).save(data / "genotype.json")
    return [
        *("--data", str(data), "--genotype", str(data / "genotype.json"), "--work", str(data / "work")),
        *("--results", str(data / "results"), "--size", "32", "64", "--epochs", "1", "--batch", "2"),
        *("--streets-epochs", "1", "--seeds", "1"),
    ]


def test_runs_are_done_once_and_reported(data, capsys):
    benchmark.main([*arguments(data), "--variants", "base", "+ streets"])
    lines = [json.loads(line) for line in (data / "work/ingredients.jsonl").read_text().splitlines()]
    assert [(line["variant"], line["held_out"]) for line in lines] == [
        (variant, sequence) for variant in ("base", "+ streets") for sequence in benchmark.SEQUENCES
    ]
    assert {line["scored_on"] for line in lines} == {2}
    said = capsys.readouterr().out
    # Pre-training is done once, and copied.
    assert said.count("streets 1/1") == 1
    benchmark.main([*arguments(data), "--variants", "base", "+ streets"])
    assert " 1/1" not in capsys.readouterr().out
    (page,) = (data / "results").glob("recipe_ingredients_cpu_*.md")
    means = [np.mean([line["miou"] for line in lines if line["variant"] == v]) for v in ("base", "+ streets")]
    assert f"| base | {means[1] - means[0]:+.1f} |" in page.read_text()
    benchmark.main([*arguments(data), "--variants", "+ streets", "--sequences", "0006R0", "--report"])
    assert " 1/1" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="use another --work"):
        benchmark.main([*arguments(data), "--epochs", "2"])


ASKED = Namespace(
    epochs=10, pictures_epochs=3, streets_epochs=4, teacher_epochs=5, size=(32, 64), batch=2, device="cpu",
    precision="bf16", compiled=True,
)  # fmt: skip


@pytest.mark.parametrize("variant", benchmark.VARIANTS)
def test_a_variant_is_what_its_name_says(variant):
    recipe = benchmark.recipe_for(variant, 3, ASKED)
    *before, target = recipe.stages
    wanted = benchmark.ingredients_of(variant)
    assert len(wanted) == (
        {"base": 0, "+": 1, "all": 8}[variant.split()[0]] - (" - " in variant) + ("all + " in variant)
    )
    assert [stage.name for stage in before] == [name for name in ("pictures", "streets") if name in wanted]
    assert ("class weights" in wanted) == (target.class_weight_offset is not None)
    assert ("rare crops" in wanted) == (target.augmentation.rare_share > 0)
    assert ("auxiliary heads" in wanted) == target.auxiliary
    assert ("moving average" in wanted) == (target.fit.average_decay > 0)
    assert ("colour jitter" in wanted) == (target.augmentation.brightness > 0)
    assert target.fit.epochs == (30 if "longer schedule" in wanted else 10)
    assert ("soft targets" in wanted) == (target.soft_targets is not None)
    is_taught = "teacher" in wanted or "soft targets" in wanted or "unlabelled" in wanted
    assert is_taught == (recipe.teacher is not None) == (target.fit.distillation_weight > 0)
    assert ("unlabelled" in wanted) == (target.unlabelled == ("idd_lite",))
    assert target.fit.compiled != target.auxiliary
    assert target.fit.seed == 3


def test_what_several_runs_need_is_kept_by_what_it_hangs_on(tmp_path):
    def kept(variant):
        recipe = benchmark.recipe_for(variant, 0, ASKED)
        return {name: path.name for name, path in benchmark.shared(recipe, "0001TP", tmp_path).items()}

    assert kept("base") == {}
    assert kept("+ streets") == kept("all - pictures") == {"streets": "streets"}
    # Streets after pictures are another training.
    assert kept("all") == {"pictures": "pictures", "streets": "pictures-streets"}
    assert kept("+ unlabelled") == {"teacher": "teacher-0001TP"}
