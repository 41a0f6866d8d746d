"""Recipes: how a found network is trained, stage by stage, as data."""

from hwnas.recipes.presets import RECIPES as RECIPES
from hwnas.recipes.recipe import Recipe as Recipe
from hwnas.recipes.recipe import Stage as Stage
from hwnas.recipes.recipe import TeacherStage as TeacherStage
from hwnas.recipes.soft_targets import SoftTargetConfig as SoftTargetConfig
from hwnas.recipes.training import train as train
