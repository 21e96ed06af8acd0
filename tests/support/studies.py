"""What studies of one task would record."""


def study_record():
    """Three seeds, in which kNN rises by two points each."""
    names = ("MAE", "CrossMAE")
    runs = [
        {"name": name, "task": "digits", "seed": seed, "knn": 0.9 + 0.02 * seed, "linear": 0.95}
        for name in names
        for seed in range(3)
    ]
    return {
        "steps": 600,
        "batch": 128,
        "torch": "2",
        "seeds": 3,
        "runs": runs,
        "baselines": {
            "digits": {
                "raw pixels": [{"knn": 0.953, "linear": 0.962}],
                "untrained encoder": [{"knn": 0.8, "linear": 0.9}, {"knn": 0.84, "linear": 0.9}],
            }
        },
        "costs": {
            "digits": {
                "MAE": {"decoder_macs": 15_000_000, "step_seconds": 0.2},
                "CrossMAE": {"decoder_macs": 3_750_000, "step_seconds": 0.1},
            }
        },
    }


def residuals_record():
    """Three seeds, in which a residual in 16 bits gains a point by kNN and loses one by the linear probe."""
    runs = [
        {"task": "digits", "residual": residual, "seed": seed, "knn": 0.9 + 0.02 * seed + more, "linear": 0.5 - more}
        for residual, more in (("float32", 0.0), ("autocast", 0.01))
        for seed in range(3)
    ]
    return {"steps": 2, "batch": 8, "seeds": 3, "torch": "2", "runs": runs}


def transfer_record():
    """Two seeds of each start, the second two points better at the end."""
    return {
        "steps": 600,
        "tuning_steps": 200,
        "batch": 128,
        "seeds": 2,
        "torch": "2",
        "runs": [
            {
                "task": "digits",
                "start": start,
                "seed": seed,
                "accuracies": [
                    {"step": 100, "top1": 0.5, "top5": 0.8},
                    {"step": 200, "top1": 0.9 + 0.02 * seed, "top5": 1.0},
                ],
            }
            for start in ("scratch", "MAE", "CrossMAE")
            for seed in range(2)
        ],
    }
