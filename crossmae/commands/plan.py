"""``crossmae plan``: a run's cost on a fleet, as a table or as JSON."""

import json

from crossmae.planning.fleet import PlanOptions
from crossmae.training.recipe import Recipe


def run(recipe: Recipe, options: PlanOptions) -> None:
    """Predict and print."""
    from crossmae.planning.cost import as_json, costs
    from crossmae.planning.report import in_words, say

    if recipe.data.source:
        raise ValueError(
            f"a plan opens no images; give their number with --images instead of --data.source {recipe.data.source}"
        )
    found = costs(recipe, int(options.images), options, say)
    print(json.dumps(as_json(found), indent=2) if options.json else in_words(found))
