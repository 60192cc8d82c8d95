"""Weights that authors have published: names, addresses, licences. The project itself ships and mirrors none.

Addresses are those that the authors' repositories and model cards give.
"""

from dataclasses import dataclass
from pathlib import Path

_META = "https://dl.fbaipublicfiles.com"

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
    """Published weights: a file at an address, or a file or folder on the Hugging Face Hub.

    Attributes:
        method: that trained them, None where it is read from the weights.
        summary: the network and its training.
        url: of a file.
        repo: on the Hugging Face Hub, ``owner/name``.
        file: in the repository; None takes the folder as transformers writes it.
        revision: branch, tag or commit of the repository.
        sha256: of the file, where it is known.
    """

    method: str | None
    summary: str
    url: str | None = None
    repo: str | None = None
    file: str | None = None
    revision: str = "main"
    sha256: str | None = None

    @property
    def address(self) -> str:
        """Return the page or file, for people and manifests."""
        if self.url is not None:
            return self.url
        page = f"https://huggingface.co/{self.repo}"
        return page if self.file is None else f"{page}/resolve/{self.revision}/{self.file}"


RELEASED = {
    "ijepa_vith14_in1k": Released(
        "ijepa",
        "I-JEPA ViT-H/14, ImageNet-1k, 300 epochs; about 10 GB with predictor and optimizer",
        url=f"{_META}/ijepa/IN1K-vit.h.14-300e.pth.tar",
        sha256="0382013c481743e9ccea89f970bc6c6aa126aa19a62127500d6e672a641aae22",
    ),
    "ijepa_vith16_448_in1k": Released(
        "ijepa",
        "I-JEPA ViT-H/16, 448 px, ImageNet-1k, 300 epochs",
        url=f"{_META}/ijepa/IN1K-vit.h.16-448px-300e.pth.tar",
    ),
    "ijepa_vith14_in22k": Released(
        "ijepa", "I-JEPA ViT-H/14, ImageNet-22k", url=f"{_META}/ijepa/IN22K-vit.h.14-900e.pth.tar"
    ),
    "ijepa_vitg16_in22k": Released(
        "ijepa", "I-JEPA ViT-g/16, ImageNet-22k", url=f"{_META}/ijepa/IN22K-vit.g.16-600e.pth.tar"
    ),
    "ijepa_vith14_in1k_encoder": Released(
        "ijepa",
        "the encoder alone (not the target encoder) of ijepa_vith14_in1k",
        repo="facebook/ijepa_vith14_1k",
    ),
    **{
        f"stop_vit{size}16": Released(
            "ijepa", f"StoP ViT-{size.upper()}/16, ImageNet-1k", repo="amirbar1/StoP", file=f"vit-{size}16.pth.tar"
        )
        for size in "blh"
    },
    **{
        f"mae_vit{size[0]}{patch}": Released(
            "mae",
            f"MAE ViT-{size[0].upper()}/{patch}, encoder alone",
            url=f"{_META}/mae/pretrain/mae_pretrain_vit_{size}.pth",
        )
        for size, patch in (("base", 16), ("large", 16), ("huge", 14))
    },
    **{
        f"mae_vit{size[0]}{patch}_hub": Released(
            "mae",
            f"MAE ViT-{size[0].upper()}/{patch} with decoder, Hugging Face",
            repo=f"facebook/vit-mae-{size}",
        )
        for size, patch in (("base", 16), ("large", 16), ("huge", 14))
    },
    **{
        f"dino_vit{size}{patch}": Released(
            "dino",
            f"DINO ViT-{size.upper()}/{patch}, teacher's encoder",
            url=f"{_META}/dino/dino_{name}{patch}_pretrain/dino_{name}{patch}_pretrain.pth",
        )
        for size, name in (("s", "deitsmall"), ("b", "vitbase"))
        for patch in (16, 8)
    },
    "msn_vitb16": Released("msn", "MSN ViT-B/16, Hugging Face", repo="facebook/vit-msn-base"),
    "data2vec_vitb16": Released("data2vec", "data2vec ViT-B/16, Hugging Face", repo="facebook/data2vec-vision-base"),
}


def method_of_file(path: Path) -> str | None:
    """Return the method of a published file with this name, whose tensors alone do not show it."""
    for released in RELEASED.values():
        if path.name == (released.file or (released.url or "").rpartition("/")[2]):
            return released.method
    return None
