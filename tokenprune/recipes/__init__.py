"""Published operating points, and other YAML files that come with the package: found, read and checked."""

from tokenprune.recipes.recipe import SHELF, Published, Recipe, StageSpec, find_named, load_recipe, recipe_names

__all__ = ["SHELF", "Published", "Recipe", "StageSpec", "find_named", "load_recipe", "recipe_names"]
