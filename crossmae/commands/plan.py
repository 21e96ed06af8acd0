"""``crossmae plan``: a run's cost on a fleet, as a table or as JSON."""

import json

from crossmae.planning.fleet import PlanOptions
from crossmae.training.recipe import IMAGENET_IMAGES, Recipe


def run(recipe: Recipe, options: PlanOptions) -> None:
    """Predict and print."""
    from crossmae.planning.cost import as_json, costs
    from crossmae.planning.report import in_words, say

    if recipe.data.source and options.images is None:
        raise ValueError(f"a plan opens no images; give the number of those in {recipe.data.source} with --images")
    found = costs(recipe, int(options.images or IMAGENET_IMAGES), options, say)
    print(json.dumps(as_json(found), indent=2) if options.json else in_words(found))
