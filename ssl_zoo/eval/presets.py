"""Protocols of papers for evaluators that train, by name and version: ``probe.linear.preset=ijepa_imagenet_v1``.

A preset sets keys of its evaluator; keys that a recipe or a command line sets explicitly take precedence and are
recorded as changes. A preset whose values turn out to be wrong gets a new version and keeps the old one.

Learning rates of ``linear`` and ``finetune`` are per 256 images, as both evaluators and most papers scale them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ssl_zoo.registry import did_you_mean


@dataclass(frozen=True)
class Preset:
    """A protocol: what it is, with its source, and the keys that it sets."""

    summary: str
    values: Mapping[str, object]


_CROPS = {"crop_scale": [0.08, 1.0], "horizontal_flip": 0.5}
_VISSL = {  # VISSL's linear evaluation on ImageNet: eval_resnet_8gpu_transfer_in1k_linear.yaml
    **_CROPS,
    "interpolation": "bilinear",
    "optimizer": "sgd",
    "nesterov": True,
    "momentum": 0.9,
    "batch_size": 256,
    "epochs": 28,
    "schedule": "step",
    "step_epochs": 8.0,
    "lrs": [0.01],
    "weight_decays": [0.0005],
    "preprocessings": ["none", "standardize"],  # linear, and batch norm before it (arXiv 2301.08243, appendix A.2)
    "layer_counts": [1, 4],
    "selection": "test",
}
_MAE_FINETUNE = {  # arXiv 2111.06377, table 9
    **_CROPS,
    "interpolation": "bicubic",
    "batch_size": 1024,
    "warmup_epochs": 5.0,
    "weight_decay": 0.05,
    "label_smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.25,
    "pooling": "average",
}
_IJEPA_LOW_SHOT = {  # arXiv 2301.08243, appendix A.2: 1 % of the labels, lr 3e-5 at batch 512
    **_CROPS,
    "interpolation": "bicubic",
    "epochs": 50,
    "batch_size": 512,
    "lr": 1.5e-5,
    "layer_decay": 0.75,
    "label_smoothing": 0.1,
    "mixup": 0.0,
    "cutmix": 0.0,
    "drop_path": 0.0,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.0,
    "pooling": "average",
}

PRESETS: Mapping[str, Mapping[str, Preset]] = {
    "linear": {
        "ijepa_imagenet_v1": Preset(
            "Tables 1 and 2 of I-JEPA: the better of the last layer and the last four (arXiv 2301.08243, appendix A.2)",
            {
                **_CROPS,
                "interpolation": "bilinear",
                "optimizer": "lars",
                "momentum": 0.9,
                "batch_size": 16384,
                "epochs": 50,
                "schedule": "step",
                "step_epochs": 15.0,
                "lrs": [0.01, 0.05, 0.001],
                "weight_decays": [0.0005, 0.0],
                "preprocessing": "none",
                "pooling": "average",
                "layer_counts": [1, 4],
                "selection": "test",
            },
        ),
        "ijepa_transfer_v1": Preset(
            "Tables 3 to 5 of I-JEPA: VISSL's 28 epochs, with and without batch norm (arXiv 2301.08243, appendix A.2)",
            {**_VISSL, "pooling": "average"},
        ),
        "ijepa_clevr_v1": Preset(
            "Clevr in I-JEPA: as ijepa_transfer_v1, with flips of the centre crop (arXiv 2301.08243, appendix A.2)",
            {**_VISSL, "pooling": "average", "crop_scale": [1.0, 1.0]},
        ),
        "mae_v1": Preset(
            "MAE and CAE: batch norm and a linear layer on the class token (arXiv 2111.06377, table 10)",
            {
                **_CROPS,
                "interpolation": "bicubic",
                "optimizer": "lars",
                "momentum": 0.9,
                "batch_size": 16384,
                "epochs": 90,
                "warmup_epochs": 10.0,
                "schedule": "cosine",
                "lrs": [0.1],
                "weight_decays": [0.0],
                "preprocessing": "standardize",
                "pooling": "class_token",
            },
        ),
        # Differs from the reference: the score is that of the last epoch, not of the best one on the test images.
        "dino_vits_v1": Preset(
            "DINO with ViT-S: class tokens of the last four blocks (arXiv 2104.14294, section 4.1)",
            {
                **_CROPS,
                "interpolation": "bilinear",
                "optimizer": "sgd",
                "momentum": 0.9,
                "batch_size": 1024,
                "epochs": 100,
                "schedule": "cosine",
                "lrs": [0.001],
                "weight_decays": [0.0],
                "preprocessing": "none",
                "pooling": "class_token",
                "num_layers": 4,
            },
        ),
        "dinov2_v1": Preset(
            "DINOv2: 4 features x 13 learning rates at once (arXiv 2304.07193)",
            {
                **_CROPS,
                "interpolation": "bicubic",
                "optimizer": "sgd",
                "momentum": 0.9,
                "batch_size": 1024,
                "epochs": 10,
                "schedule": "cosine",
                "lrs": [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1],
                "weight_decays": [0.0],
                "preprocessing": "none",
                "poolings": ["class_token", "class_token_and_average"],
                "layer_counts": [1, 4],
                "selection": "test",
            },
        ),
    },
    "attentive": {
        # Differs from the reference: no MLP after the attention, no AutoAugment, random erasing or gradient clipping.
        "vjepa_v1": Preset(
            "V-JEPA's schedule for the attentive head here (arXiv 2404.08471)",
            {
                **_CROPS,
                "interpolation": "bicubic",
                "epochs": 20,
                "batch_size": 1024,
                "lr": 0.001,
                "weight_decay": 0.001,
            },
        ),
    },
    "finetune": {
        "mae_vitb_v1": Preset(
            "MAE, ViT-B (arXiv 2111.06377, table 9)",
            {**_MAE_FINETUNE, "epochs": 100, "lr": 5e-4, "layer_decay": 0.65, "drop_path": 0.1},
        ),
        "mae_vitl_v1": Preset(
            "MAE, ViT-L (arXiv 2111.06377, table 9)",
            {**_MAE_FINETUNE, "epochs": 50, "lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.2},
        ),
        "mae_vith_v1": Preset(
            "MAE, ViT-H (arXiv 2111.06377, table 9)",
            {**_MAE_FINETUNE, "epochs": 50, "lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.3},
        ),
        # lr 1e-4 at batch 528. Random erasing is not mentioned.
        "ijepa_vith16_448_v1": Preset(
            "Table 15 of I-JEPA: all of ImageNet at 448 pixels (arXiv 2301.08243)",
            {
                **_MAE_FINETUNE,
                "epochs": 50,
                "batch_size": 528,
                "lr": 1e-4 * 256 / 528,
                "layer_decay": 0.75,
                "drop_path": 0.25,
                "weight_decay": 0.04,
                "random_erasing": 0.0,
            },
        ),
        "ijepa_low_shot_vitl16_v1": Preset(
            "Table 2 of I-JEPA, ViT-L/16: 1 % of ImageNet's labels (arXiv 2301.08243, appendix A.2)",
            {**_IJEPA_LOW_SHOT, "weight_decay": 0.05},
        ),
        "ijepa_low_shot_vith_v1": Preset(
            "Table 2 of I-JEPA, ViT-H/14, and ViT-H/16 at 448 pixels (arXiv 2301.08243, appendix A.2)",
            {**_IJEPA_LOW_SHOT, "weight_decay": 0.4},
        ),
    },
}


def check_preset(evaluator: str, preset: str) -> None:
    """Raise ValueError if an evaluator has no preset of a name."""
    known = PRESETS.get(evaluator, {})
    if preset not in known:
        hint = f"{did_you_mean(preset, known)} Known: {', '.join(known) or 'none'}"
        raise ValueError(f"probe.{evaluator}.preset={preset}: no such preset.{hint}")


def with_presets(given: Mapping[str, object]) -> Mapping[str, object]:
    """Add the values of the presets that nested values name, below those that are given.

    Args:
        given: of a recipe or a command line, e.g. ``{"probe": {"linear": {"preset": "mae_v1"}}}``.

    Raises:
        ValueError: an unknown preset.
    """
    probe = given.get("probe")
    if not isinstance(probe, Mapping):
        return given
    filled = dict(probe)
    for evaluator, section in probe.items():
        if isinstance(section, Mapping) and (preset := section.get("preset")):
            check_preset(evaluator, preset)
            filled[evaluator] = {**PRESETS[evaluator][preset].values, **section}
    return {**given, "probe": filled}


def changes_of(evaluator: str, preset: str, values: Mapping[str, object]) -> dict[str, object]:
    """Return the values that differ from those of a preset."""
    return {key: values[key] for key, value in PRESETS[evaluator][preset].values.items() if values[key] != value}
