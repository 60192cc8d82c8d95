"""A file of everything that one step saw, from which its loss can be computed again."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from ssl_zoo.data.batch import Batch
from ssl_zoo.data.loader import TrainingData
from ssl_zoo.engine.checkpoint.storage import save_tensors
from ssl_zoo.masks import Masks, Pairing
from ssl_zoo.method import Method, Progress, Step
from ssl_zoo.world import World

_PROGRESS = ("step", "num_steps", "samples", "steps_per_epoch")


@dataclass(frozen=True)
class StepFile:
    """What a step saw on one rank.

    Attributes:
        batch: on the host: uint8 views, masks, sample ids.
        step: progress and scheduled values.
        torch_seed: of torch's global generator before the forward pass, for drop-path.
    """

    batch: Batch
    step: Step
    torch_seed: int

    def write(self, path: Path) -> None:
        """Write a safetensors file with ``view.NAME``, ``masks.NAME.{context,targets,masked}``, ``value.NAME``."""
        tensors = {f"view.{name}": view for name, view in self.batch.views.items()}
        tensors |= {f"value.{name}": value for name, value in self.step.values.items()}
        pairings = {}
        for name, masks in self.batch.masks.items():
            parts = {"context": masks.context, "targets": masks.targets, "masked": masks.masked}
            tensors |= {f"masks.{name}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
            pairings[name] = masks.pairing.value
        if self.batch.index is not None:
            tensors["index"] = self.batch.index
        progress = {name: getattr(self.step.progress, name) for name in _PROGRESS}
        facts = {"progress": progress, "pairings": pairings, "torch_seed": self.torch_seed}
        contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        # Names keep the order of views, which safetensors sorts.
        save_tensors(contiguous, path, {"step": json.dumps(facts | {"views": list(self.batch.views)})})

    @classmethod
    def read(cls, path: Path) -> "StepFile":
        """Read what ``write`` has written."""
        with safe_open(str(path), "pt") as file:
            facts = json.loads(file.metadata()["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        masks = {
            name: Masks(
                tensors[f"masks.{name}.context"],
                tensors[f"masks.{name}.targets"],
                Pairing(pairing),
                tensors.get(f"masks.{name}.masked"),
            )
            for name, pairing in facts["pairings"].items()
        }
        views = {name: tensors[f"view.{name}"] for name in facts["views"]}
        values = {name[len("value.") :]: tensor for name, tensor in tensors.items() if name.startswith("value.")}
        step = Step(Progress(**facts["progress"]), values, World())
        return cls(Batch(views, masks, tensors.get("index")), step, facts["torch_seed"])

    def loss(self, method: Method, data: TrainingData) -> torch.Tensor:
        """Compute the loss again, by a method with the weights that met this step, in float32 on the CPU.

        Args:
            data: of the run, for the normalisation of its views.
        """
        torch.manual_seed(self.torch_seed)
        return method.train()(data.to_device(self.batch, "cpu"), self.step).loss
