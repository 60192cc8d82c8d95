"""The model cards of exports and imports: ``README.md`` with origin, use, scores and licence."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ssl_zoo.interop.importing import ImportedWeights
from ssl_zoo.interop.manifest import Manifest
from ssl_zoo.interop.matching import few

_LIBRARIES = {"timm": "timm", "huggingface": "transformers", "onnx": "onnx"}
_USES = {
    "safetensors": "import ssl_zoo\n\nencoder = {load}\nfeatures = encoder.embed(['photo.jpg'])  # (1, D)",
    "timm": "import timm\n\nmodel = {load}.eval()\ntokens = model.forward_features(images)  # (B, L, D)",
    "huggingface": "import transformers\n\nmodel = {load}.eval()\ntokens = model(images)[0]  # (B, L, D)",
    "onnx": (
        "import onnxruntime\n\nsession = {load}\n"
        'embedding, patches = session.run(None, {{"images": images}})  # (B, D), (B, N, D)'
    ),
    "torch-export": "import torch\n\nmodel = {load}\nembedding, patches = model(images)  # (B, D), (B, N, D)",
}
_MAE_USE = "import transformers\n\nmodel = {load}.eval()\nloss, logits = model(images)[:2]"
_LICENCE = (
    "ssl_zoo sets no licence for these weights. The terms of the training data, and of weights that the run started "
    "from, may restrict their use: add the licence under which you share them."
)


def model_card(
    manifest: Manifest, facts: Mapping[str, str] = MappingProxyType({}), scores: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return the text of the card.

    Args:
        facts: rows about the training, such as recipe, data, seed and commit.
        scores: mappings with ``name``, ``value``, ``random_init`` and ``protocol_hash``, formatted as text.
    """
    format = manifest.details["format"]
    load = manifest.details["load"]
    use = _MAE_USE if "ForPreTraining" in load else _USES[format]
    origin = f"imported from `{manifest.source['file']}`" if "file" in manifest.source else "of an ssl_zoo run"
    lines = [
        *_head(manifest, _LIBRARIES.get(format, "ssl_zoo")),
        f"Self-supervised weights (`{manifest.evaluated}`) {origin}, written by `export_weights.py --format {format}`. "
        "`manifest.json` has the configuration and the SHA-256 of every file.",
        "",
        *_code(use.format(load=load)),
        *_images(manifest),
        *_rows({**facts, "verification": _verification(manifest)}),
        *_scores(scores),
        "## Licence",
        "",
        str(manifest.source.get("licence") or _LICENCE),
    ]
    return "\n".join(lines) + "\n"


def import_card(imported: ImportedWeights, manifest: Manifest) -> str:
    """Return the text of the card of an import: where the weights come from, and what was taken of them."""
    source = manifest.source
    files = source.get("files") or [{"name": imported.file.files[0].name, "sha256": source["sha256"]}]
    facts = {
        "source": source.get("url", f"`{source['file']}`"),
        **({"revision": f"`{source['revision']}`"} if "revision" in source else {}),
        **{f"SHA-256 of `{file['name']}`": f"`{file['sha256']}`" for file in files},
        "method": manifest.method,
        "networks": ", ".join(imported.networks),
        "evaluated": manifest.evaluated,
        "matched": source["matched"],
        **{f"left out ({len(names)})": f"{few(names)}: {reason}" for reason, names in imported.left_out.items()},
        **{f"{network} keeps its initial": few(names) for network, names in imported.missing.items()},
        **({"remarks": "; ".join(imported.remarks)} if imported.remarks else {}),
    }
    load = manifest.details["load"]
    lines = [
        *_head(manifest, "ssl_zoo"),
        "Self-supervised weights of others, imported by `import_weights.py`. `manifest.json` has the sizes, the "
        "preprocessing and the SHA-256 of every file; `recipe.yaml` is a recipe for networks of these sizes.",
        "",
        *_code(_USES["safetensors"].format(load=load)),
        "A run starts from them by `backbone.init_from=FOLDER`: `python tools/train_net.py --config FOLDER/recipe.yaml "
        "backbone.init_from=FOLDER`.",
        "",
        *_images(manifest),
        *_rows(facts),
        "## Licence",
        "",
        f"Of the weights: {source['licence']}",
    ]
    return "\n".join(lines) + "\n"


def _head(manifest: Manifest, library: str) -> list[str]:
    return [
        "---",
        f"library_name: {library}",
        "pipeline_tag: image-feature-extraction",
        f"tags: [self-supervised-learning, {manifest.method}]",
        "---",
        "",
        f"# {manifest.method}, {_architecture(manifest)}",
        "",
    ]


def _code(text: str) -> list[str]:
    return ["```python", text, "```", ""]


def _images(manifest: Manifest) -> list[str]:
    transform, height_width = manifest.transform, "x".join(map(str, manifest.transform.size))
    shorter = round(min(transform.size) / transform.crop_fraction)
    return [
        f"Images: {transform.channels} channels, {height_width} pixels. Resize the shorter side of a larger image to "
        f"{shorter} pixels ({transform.interpolation}, antialiased) and crop the centre; resize others. Normalise "
        f"pixels in 0..1 by mean {_numbers(transform.mean)} and standard deviation {_numbers(transform.std)}. "
        f"Features: {_pooling(manifest)}.",
        "",
    ]


def _rows(facts: Mapping[str, str]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items()), ""]


def _architecture(manifest: Manifest) -> str:
    values = manifest.backbone
    return f"ViT of width {values['embed_dim']}, depth {values['depth']}, patch size {values['patch_size']}"


def _pooling(manifest: Manifest) -> str:
    return "the class token" if manifest.pooling == "class_token" else "the mean over patch tokens"


def _verification(manifest: Manifest) -> str:
    verified = manifest.details["verified"]
    if verified["by"] is None:
        return f"**not verified**: {verified['reason']}"
    return (
        f"features of {verified['by']} equal ssl_zoo's within {verified['largest_difference']:.1e} of the largest one "
        f"(tolerance {verified['tolerance']:g}, {verified['dtype']})"
    )


def _scores(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    if not scores:
        return ["No scores are recorded for this checkpoint; `tools/eval_net.py --run RUN` measures them.", ""]
    rows = [f"| {s['name']} | {s['value']} | {s['random_init']} | `{s['protocol_hash']}` |" for s in scores]
    return ["| evaluation | score | random init | protocol |", "|---|---|---|---|", *rows, ""]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
