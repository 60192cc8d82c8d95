"""Weights that authors have published: names, addresses, licences. The project itself ships and mirrors none.

Addresses are those that the authors' repositories and model cards give.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_META = "https://dl.fbaipublicfiles.com"
_HUB = "https://huggingface.co"
_FOLDER_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")

# Licence of the weights that a method's authors published, from the repository or model card. "vit" has many authors.
LICENCES = {
    "ijepa": "CC BY-NC 4.0 (facebookresearch/ijepa)",
    "vjepa": "CC BY-NC 4.0 (facebookresearch/jepa)",
    "mae": "CC BY-NC 4.0 (facebookresearch/mae)",
    "moco_v3": "CC BY-NC 4.0 (facebookresearch/moco-v3)",
    "msn": "CC BY-NC 4.0 (facebookresearch/msn)",
    "data2vec": "CC BY-NC 4.0 (facebookresearch/data2vec_vision)",
    "data2vec2": "CC BY-NC 4.0 (facebookresearch/fairseq, vision models)",
    "simmim": "MIT (microsoft/SimMIM)",
    "beit": "MIT (microsoft/unilm)",
    "dino": "Apache-2.0 (facebookresearch/dino)",
    "dinov2": "Apache-2.0 (facebookresearch/dinov2)",
    "ibot": "Apache-2.0 (bytedance/ibot)",
    "cae": "none was published (Atten4Vis/CAE)",
}
UNKNOWN_LICENCE = "unknown; ask the authors of the weights"


@dataclass(frozen=True)
class Released:
    """Published weights.

    Attributes:
        method: that trained them.
        address: of a file, or of the folder of Hugging Face.
        summary: the network and its training.
        sha256: of the file, where it is known.
    """

    method: str
    address: str
    summary: str
    sha256: str | None = None

    @property
    def urls(self) -> Sequence[str]:
        """Return the addresses of the files; those of a folder are optional except for configuration and weights."""
        if self.is_folder:
            return [f"{self.address}/resolve/main/{name}" for name in _FOLDER_FILES]
        return [self.address]

    @property
    def is_folder(self) -> bool:
        return not self.address.endswith((".pth", ".pt", ".tar", ".safetensors"))


RELEASED = {
    "ijepa_vith14_in1k": Released(
        "ijepa",
        f"{_META}/ijepa/IN1K-vit.h.14-300e.pth.tar",
        "I-JEPA ViT-H/14, ImageNet-1k, 300 epochs; about 10 GB with predictor and optimizer",
        "0382013c481743e9ccea89f970bc6c6aa126aa19a62127500d6e672a641aae22",
    ),
    "ijepa_vith16_448_in1k": Released(
        "ijepa", f"{_META}/ijepa/IN1K-vit.h.16-448px-300e.pth.tar", "I-JEPA ViT-H/16, 448 px, ImageNet-1k, 300 epochs"
    ),
    "ijepa_vith14_in22k": Released(
        "ijepa", f"{_META}/ijepa/IN22K-vit.h.14-900e.pth.tar", "I-JEPA ViT-H/14, ImageNet-22k"
    ),
    "ijepa_vitg16_in22k": Released(
        "ijepa", f"{_META}/ijepa/IN22K-vit.g.16-600e.pth.tar", "I-JEPA ViT-g/16, ImageNet-22k"
    ),
    "ijepa_vith14_in1k_encoder": Released(
        "ijepa", f"{_HUB}/facebook/ijepa_vith14_1k", "the encoder alone (not the target encoder) of ijepa_vith14_in1k"
    ),
    **{
        f"stop_vit{size}16": Released(
            "ijepa",
            f"{_HUB}/amirbar1/StoP/resolve/main/vit-{size}16.pth.tar",
            f"StoP ViT-{size.upper()}/16, ImageNet-1k",
        )
        for size in "blh"
    },
    **{
        f"mae_vit{size[0]}{patch}": Released(
            "mae",
            f"{_META}/mae/pretrain/mae_pretrain_vit_{size}.pth",
            f"MAE ViT-{size[0].upper()}/{patch}, encoder alone",
        )
        for size, patch in (("base", 16), ("large", 16), ("huge", 14))
    },
    **{
        f"mae_vit{size[0]}{patch}_hub": Released(
            "mae", f"{_HUB}/facebook/vit-mae-{size}", f"MAE ViT-{size[0].upper()}/{patch} with decoder, Hugging Face"
        )
        for size, patch in (("base", 16), ("large", 16), ("huge", 14))
    },
    **{
        f"dino_vit{size}{patch}": Released(
            "dino",
            f"{_META}/dino/dino_{name}{patch}_pretrain/dino_{name}{patch}_pretrain.pth",
            f"DINO ViT-{size.upper()}/{patch}, teacher's encoder",
        )
        for size, name in (("s", "deitsmall"), ("b", "vitbase"))
        for patch in (16, 8)
    },
    "msn_vitb16": Released("msn", f"{_HUB}/facebook/vit-msn-base", "MSN ViT-B/16, Hugging Face"),
    "data2vec_vitb16": Released("data2vec", f"{_HUB}/facebook/data2vec-vision-base", "data2vec ViT-B/16, Hugging Face"),
}


def method_of_file(path: Path) -> str | None:
    """Return the method of a published file with this name, whose tensors alone do not show it."""
    for released in RELEASED.values():
        if not released.is_folder and released.address.rpartition("/")[2] == path.name:
            return released.method
    return None
