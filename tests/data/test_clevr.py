import json
from pathlib import Path

import pytest
from PIL import Image

from ssl_zoo.data.sources import SOURCES, Split
from ssl_zoo.data.sources.clevr import ClevrConfig


def clevr(root: Path, depths: list[list[float]]) -> Path:
    """A folder in the layout of CLEVR v1.0 whose images show objects at these depths."""
    for part in ("train", "val"):
        folder, scenes = root / "images" / part, []
        folder.mkdir(parents=True)
        for number, depth in enumerate(depths):
            name = f"CLEVR_{part}_{number:06d}.png"
            Image.new("RGBA", (48, 32), (number, 100, 100, 255)).save(folder / name)
            objects = [{"shape": "cube", "pixel_coords": [10, 20, d]} for d in depth]
            scenes.append({"image_filename": name, "objects": objects})
        (root / "scenes").mkdir(exist_ok=True)
        (root / "scenes" / f"CLEVR_{part}_scenes.json").write_text(json.dumps({"info": {}, "scenes": scenes[::-1]}))
    return root


def test_labels_are_the_number_of_objects_and_the_class_of_the_nearest(tmp_path):
    depths = [[8.0, 12, 9], [8.01, 9, 10, 11], [9.9, 10.5, 12], [10.0, 11, 12, 13, 14], [10.2] * 10]
    source = SOURCES.build(ClevrConfig(root=str(clevr(tmp_path, depths))), Split.test)
    assert source.sample_name(1) == "CLEVR_val_000001.png" and source.image(1).shape == (3, 32, 48)
    assert {name: labels.tolist() for name, labels in source.label_sets.items()} == {
        "count": [0, 1, 0, 2, 7],
        "distance": [0, 1, 4, 4, 5],  # VTAB: thresholds 8, 8.5, 9, 9.5, 10; an edge belongs to the class below
    }


def test_missing_files_are_reported(tmp_path):
    with pytest.raises(ValueError, match=r"needs data\.root"):
        SOURCES.build(ClevrConfig(), Split.train)
    with pytest.raises(ValueError, match="has no images/train"):
        SOURCES.build(ClevrConfig(root=str(tmp_path)), Split.train)
    root = clevr(tmp_path / "clevr", [[9.0] * 3] * 2)
    (root / "images" / "train" / "extra.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no scene for 1 images .* such as extra\.png"):
        SOURCES.build(ClevrConfig(root=str(root)), Split.train)
    (root / "scenes" / "CLEVR_train_scenes.json").write_text('{"scenes": [{}]}')
    with pytest.raises(ValueError, match="no scene file of CLEVR"):
        SOURCES.build(ClevrConfig(root=str(root)), Split.train)
