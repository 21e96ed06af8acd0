"""The authors' release's own results on small shapes: inputs, weights, loss, predictions, masks and gradients."""

import json
from pathlib import Path

from safetensors import safe_open

FOLDER = Path(__file__).parents[1] / "golden"
CASES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))


class Case:
    def __init__(self, name):
        with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        self.arguments = json.loads(metadata["config"])
        self.ratios = {
            "mask_ratio": float(metadata["mask_ratio"]),
            "prediction_ratio": float(metadata["kept_mask_ratio"]),
        }
        self.images, self.noise = tensors["input.imgs"], tensors["input.noise"]
        self.loss, self.mask = tensors["output.loss"], tensors["output.mask"]
        prediction = tensors["output.pred"]
        if prediction.shape[1] == self.mask.shape[1]:  # MAE's release hands out all patches
            prediction = prediction[self.mask.bool()].view(len(prediction), -1, prediction.shape[2])
        self.prediction = prediction
        self.weights = self._under("weight.", tensors)
        self.gradients = self._under("grad.", tensors)

    @staticmethod
    def _under(prefix, tensors):
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
