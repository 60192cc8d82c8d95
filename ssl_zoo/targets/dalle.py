"""The encoder of DALL-E's discrete VAE (Ramesh et al., arXiv 2102.12092), loaded from a safetensors file."""

import hashlib
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

DALLE_STRIDE = 8  # pixels per token, in both directions
_GROUPS = 4
_BLOCKS = 2  # per group


class DalleEncoder(nn.Module):
    """Tokenizes images: one of ``num_tokens`` categories per 8x8 pixels, the one with the largest logit.

    The structure is that of openai/DALL-E, dall_e/encoder.py: a 7x7 convolution and four groups of two residual blocks,
    between which the resolution is halved and the width doubled. Nothing of it is trained.
    """

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        widths = [width, *(width * 2**group for group in range(_GROUPS))]
        self.blocks = nn.ModuleDict({"input": nn.Conv2d(3, width, 7, padding=3)})
        for group, (dim_in, dim) in enumerate(pairwise(widths), start=1):
            first, second = _ResidualBlock(dim_in, dim), _ResidualBlock(dim, dim)
            self.blocks[f"group_{group}"] = nn.ModuleDict({"block_1": first, "block_2": second})
        self.blocks["output"] = nn.ModuleDict({"conv": nn.Conv2d(widths[-1], num_tokens, 1)})
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B N"]:
        """Return the tokens, row-major.

        Args:
            pixels: in 0..1.
        """
        x = self.blocks["input"](0.8 * pixels + 0.1)  # dall_e/utils.py keeps pixels off the ends of the logistic
        for group in range(1, _GROUPS + 1):
            for block in self.blocks[f"group_{group}"].values():
                x = block(x)
            if group < _GROUPS:
                x = nn.functional.max_pool2d(x, 2)
        return self.blocks["output"]["conv"](x.relu()).flatten(2).argmax(dim=1)


class _ResidualBlock(nn.Module):
    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        widths, kernels = (dim_in, *[dim // 4] * 3, dim), (3, 3, 3, 1)
        self.id_path = nn.Identity() if dim_in == dim else nn.Conv2d(dim_in, dim, 1)
        self.res_path = nn.ModuleDict(
            {
                f"conv_{number}": nn.Conv2d(*pair, kernel, padding=kernel // 2)
                for number, (pair, kernel) in enumerate(zip(pairwise(widths), kernels, strict=True), start=1)
            }
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        branch = x
        for convolution in self.res_path.values():
            branch = convolution(branch.relu())
        return self.id_path(x) + branch / (_GROUPS * _BLOCKS) ** 2


def load_dalle(encoder: DalleEncoder, weights: str, sha256: str | None) -> None:
    """Load the official encoder's state dict, whose layers call their tensors ``w`` and ``b``.

    An encoder on the meta device stays as it is, and the file is not read.

    Raises:
        ValueError: the file is missing, has another digest, is no safetensors file, or holds other tensors.
    """
    own = encoder.state_dict()
    if all(tensor.is_meta for tensor in own.values()):
        return
    path, key = Path(weights).expanduser(), f"targets.weights={weights}"
    if not path.is_file():
        raise ValueError(
            f"{key}: no such file; name a safetensors file of DALL-E's encoder or set targets.tokenizer=rpq"
        )
    if sha256 is not None:
        digest = _sha256(path)
        if digest != sha256.lower():
            raise ValueError(f"{key} has the SHA-256 {digest}, not targets.sha256={sha256}: it is another file")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{key} is truncated or no safetensors file ({error}). Pickled files such as encoder.pkl are not read: "
            "save the state dict of the encoder with safetensors.torch.save_file (docs/methods/cae.md)"
        ) from error
    given = {_own_name(name): tensor for name, tensor in tensors.items()}
    complaints = [f"lacks {_official_name(name)}" for name in own if name not in given]
    complaints += [f"has the unknown {_official_name(name)}" for name in given if name not in own]
    complaints += [
        f"has {_official_name(name)} of shape {list(given[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if complaints:
        more = f" and {len(complaints) - 3} more differences" if len(complaints) > 3 else ""
        raise ValueError(
            f"{key} is not in the layout of DALL-E's encoder (openai/DALL-E) with targets.num_tokens="
            f"{len(own['blocks.output.conv.bias'])} and targets.dalle_width={len(own['blocks.input.bias'])}: it "
            f"{'; '.join(complaints[:3])}{more}"
        )
    encoder.load_state_dict(given)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for part in iter(partial(file.read, 2**20), b""):
            digest.update(part)
    return digest.hexdigest()


def _own_name(official: str) -> str:
    stem, dot, last = official.rpartition(".")
    return stem + dot + {"w": "weight", "b": "bias"}.get(last, last)


def _official_name(own: str) -> str:
    return own.removesuffix("eight") if own.endswith(".weight") else own.removesuffix("ias")
