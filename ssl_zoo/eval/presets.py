"""Protocols of papers for evaluators that train, by name and version: ``probe.linear.preset=ijepa_imagenet_v1``.

A preset sets keys of its evaluator; keys that a recipe or a command line sets explicitly take precedence and are
recorded as changes. A preset whose values turn out to be wrong gets a new version and keeps the old one.

Learning rates are per 256 images, as the papers' own scaling rule has them.
"""

from collections.abc import Mapping

from ssl_zoo.registry import did_you_mean

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

PRESETS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "linear": {
        # Tables 1 and 2: arXiv 2301.08243, appendix A.2. The better of both features is reported.
        "ijepa_imagenet_v1": {
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
        # Tables 3 to 5: VISSL's defaults on other data, heads with and without batch norm.
        "ijepa_transfer_v1": {**_VISSL, "pooling": "average"},
        # Clevr: a flip of the centre crop (appendix A.2).
        "ijepa_clevr_v1": {**_VISSL, "pooling": "average", "crop_scale": [1.0, 1.0]},
        # MAE: arXiv 2111.06377, table 10; blr 0.1, class token. CAE is probed alike.
        "mae_v1": {
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
        # DINO, ViT-S: arXiv 2104.14294, section 4.1. Differs from the reference: the score is that of the last epoch,
        # not of the best one on the test images.
        "dino_vits_v1": {
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
        # DINOv2: arXiv 2304.07193; 4 features x 13 learning rates, chosen on the test images.
        "dinov2_v1": {
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
    },
    "attentive": {
        # V-JEPA's schedule (arXiv 2404.08471, appendix D) for the head here. Differs from the reference: neither an MLP
        # after the attention, nor AutoAugment and random erasing, nor gradient clipping.
        "vjepa_v1": {
            **_CROPS,
            "interpolation": "bicubic",
            "epochs": 20,
            "batch_size": 1024,
            "lr": 0.001,
            "weight_decay": 0.001,
        },
    },
    "finetune": {
        "mae_vitb_v1": {**_MAE_FINETUNE, "epochs": 100, "lr": 5e-4, "layer_decay": 0.65, "drop_path": 0.1},
        "mae_vitl_v1": {**_MAE_FINETUNE, "epochs": 50, "lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.2},
        "mae_vith_v1": {**_MAE_FINETUNE, "epochs": 50, "lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.3},
        # Table 15: arXiv 2301.08243, appendix; all of ImageNet at 448 pixels, lr 1e-4 at batch 528.
        "ijepa_vith16_448_v1": {
            **_MAE_FINETUNE,
            "epochs": 50,
            "batch_size": 528,
            "lr": 1e-4 * 256 / 528,
            "layer_decay": 0.75,
            "drop_path": 0.25,
            "weight_decay": 0.04,
            "random_erasing": 0.0,
        },
        "ijepa_low_shot_vitl16_v1": {**_IJEPA_LOW_SHOT, "weight_decay": 0.05},
        "ijepa_low_shot_vith14_v1": {**_IJEPA_LOW_SHOT, "weight_decay": 0.4},
        "ijepa_low_shot_vith16_448_v1": {**_IJEPA_LOW_SHOT, "weight_decay": 0.4},
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
            filled[evaluator] = {**PRESETS[evaluator][preset], **section}
    return {**given, "probe": filled}


def changes_of(evaluator: str, preset: str, values: Mapping[str, object]) -> dict[str, object]:
    """Return the values that differ from those of a preset."""
    return {key: values[key] for key, value in PRESETS[evaluator][preset].items() if values[key] != value}
