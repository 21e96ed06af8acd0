"""``crossmae plan``: a run's cost on a fleet, as a table or as JSON."""

import json
import sys

from crossmae.planning.fleet import PlanOptions
from crossmae.training.recipe import Recipe


def run(recipe: Recipe, options: PlanOptions) -> None:
    """Predict and print."""
    from crossmae.planning.cost import as_json, costs
    from crossmae.planning.report import in_words

    if recipe.data.source:
        raise ValueError(
            f"a plan opens no images; give their number with --images instead of --data.source {recipe.data.source}"
        )
    found = costs(recipe, int(options.images), options, _say)
    print(json.dumps(as_json(found), indent=2) if options.json else in_words(found))


def _say(model: str, done: int, of: int) -> None:
    """Progress: rewritten in place on a terminal; elsewhere one line at the start."""
    if sys.stderr.isatty():
        end = "\n" if done == of else ""
        print(f"\r{model}: {done} of {of} kernels predicted", end=end, file=sys.stderr, flush=True)
    elif done == 1:
        print(f"{model}: predicting {of} kernels", file=sys.stderr, flush=True)
