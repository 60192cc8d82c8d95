"""The configuration of an encoder, recognised from the names and shapes of its tensors."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt

import torch
from torch import Tensor

from ssl_zoo.interop.foreign_file import ForeignFileError
from ssl_zoo.nn import NormPosition, Positions, SincosLayout, ViTConfig, sincos_positions
from ssl_zoo.nn.relative_position import relative_position_index

_NUM_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}  # of published widths (arXiv 2010.11929)
_MOCO_V3_HEADS = {384: 12}  # arXiv 2104.02057, its code: heads of 32 channels
_DEPTHS = {192: (12,), 384: (12,), 768: (12,), 1024: (24,), 1280: (32,), 1408: (40,), 1664: (48,)}
_LAYER_SCALE = 1e-5  # initial factor where no file says it; only a fresh start would use it
_SINCOS_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
_TABLE, _INDEX = "rel_pos_bias.relative_position_bias_table", "rel_pos_bias.relative_position_index"
_BLOCK = re.compile(r"^blocks\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Known:
    """What is known of an encoder beside its tensors; None is found out or has the usual value.

    Attributes:
        may_lack_norm: whether the network may end without a norm, since it has one of pooled features instead.
    """

    method: str = "vit"
    num_heads: int | None = None
    norm_eps: float | None = None
    image_size: tuple[int, int] | None = None
    layer_scale: float | None = None
    may_lack_norm: bool = False


def recognise(tensors: Mapping[str, Tensor], known: Known) -> tuple[ViTConfig, dict[str, Tensor], list[str]]:
    """Recognise an encoder.

    Args:
        tensors: under the names of ``ViT``; tables of positions as the file has them.

    Returns:
        Its configuration, its tensors with sin-cos tables recomputed, and remarks for the user.

    Raises:
        ForeignFileError: no vision transformer of images, or a size that only the user can know.
    """
    kernel = tensors.get("patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 4:
        shape = "missing" if kernel is None else f"of the shape {list(kernel.shape)}, as of networks of videos"
        raise ForeignFileError(f"patch_embed.proj.weight is {shape}; encoders of images alone can be imported")
    dim, channels, patch_size, width = kernel.shape
    if patch_size != width:
        raise ForeignFileError(
            f"patch_embed.proj.weight has patches of {patch_size}x{width} pixels; square ones are needed"
        )
    hidden = tensors.get("blocks.0.mlp.fc1.weight")
    if hidden is None:
        raise ForeignFileError(
            "blocks.0.mlp.fc1.weight is missing: the file holds no transformer with MLPs of two layers"
        )
    tensors, names = _with_class_slot(tensors, known, patch_size), set(tensors)
    depth = _depth(names)
    has_scale, is_post = "blocks.0.ls1.gamma" in names, "norm_pre.weight" in names
    grid, remarks = _grid(tensors, known, patch_size)
    config = ViTConfig(
        image_size=grid[0] * patch_size,
        image_width=None if grid[0] == grid[1] else grid[1] * patch_size,
        patch_size=patch_size,
        in_channels=channels,
        embed_dim=dim,
        depth=depth,
        num_heads=_num_heads(tensors, dim, known),
        mlp_ratio=len(hidden) / dim,
        positions=Positions.none if "pos_embed" not in names else Positions.learned,
        class_token="cls_token" in names,
        num_registers=tensors["reg_token"].shape[1] if "reg_token" in names else 0,
        relative_position_bias=_TABLE in names,
        qkv_bias=bool({"blocks.0.attn.qkv.bias", "blocks.0.attn.qkv.q_bias"} & names),
        key_bias="blocks.0.attn.qkv.q_bias" not in names,
        norm_position=NormPosition.post if is_post else NormPosition.pre,
        final_norm=is_post or "norm.weight" in names or not known.may_lack_norm,
        norm_eps=1e-6 if known.norm_eps is None else known.norm_eps,
        layer_scale=(known.layer_scale or _LAYER_SCALE) if has_scale else None,
    )
    if depth not in _DEPTHS.get(dim, (depth,)):
        remarks.append(
            f"{depth} blocks of width {dim}: published networks have {_DEPTHS[dim][0]}; is the file complete?"
        )
    config, tensors, of_positions = _with_positions(config, tensors, known)
    return config, tensors, remarks + of_positions


def _depth(names: set[str]) -> int:
    numbers = {int(match[1]) for match in map(_BLOCK.match, names) if match}
    if len(numbers) <= max(numbers):
        lacking = min(set(range(len(numbers) + 1)) - numbers)
        raise ForeignFileError(
            f"blocks.{lacking} is missing, but there is blocks.{max(numbers)}; the file is incomplete"
        )
    return len(numbers)


def _with_class_slot(tensors: Mapping[str, Tensor], known: Known, patch_size: int) -> dict[str, Tensor]:
    """Add a row of zeros for the class token to positions of the patches alone (timm's ``no_embed_class``)."""
    table = tensors.get("pos_embed")
    if table is None or "cls_token" not in tensors:
        return dict(tensors)
    rows, usual = table.shape[-2], {"reg_token", "norm_pre.weight"} & set(tensors)
    if known.image_size is not None:
        is_lacking = rows == (known.image_size[0] // patch_size) * (known.image_size[1] // patch_size)
    else:
        is_lacking = bool(usual) and isqrt(rows) ** 2 == rows and isqrt(rows - 1) ** 2 != rows - 1
    if not is_lacking:
        return dict(tensors)
    table = table.reshape(1, rows, -1)
    return {**tensors, "pos_embed": torch.cat([table.new_zeros(1, 1, table.shape[-1]), table], dim=1)}


def _num_heads(tensors: Mapping[str, Tensor], dim: int, known: Known) -> int:
    if known.num_heads is not None:
        return known.num_heads
    if _TABLE in tensors:
        return tensors[_TABLE].shape[1]
    usual = (_MOCO_V3_HEADS if known.method == "moco_v3" else {}).get(dim) or _NUM_HEADS.get(dim)
    if usual is None:
        raise ForeignFileError(
            f"the width {dim} is none of the published {', '.join(map(str, _NUM_HEADS))}, and no tensor shows the "
            "number of attention heads; give it as --num-heads N"
        )
    return usual


def _grid(tensors: Mapping[str, Tensor], known: Known, patch_size: int) -> tuple[tuple[int, int], list[str]]:
    """Find the rows and columns of patches that the tables of positions are for."""
    num_slots = int("cls_token" in tensors)
    grids = _grids(tensors, num_slots)
    if known.image_size is not None:
        wanted = known.image_size[0] // patch_size, known.image_size[1] // patch_size
        if grids and wanted not in grids:
            rows = " or ".join(f"{h * patch_size}x{w * patch_size}" for h, w in grids[:4])
            height, width = known.image_size
            raise ForeignFileError(f"the tables of positions are for images of {rows} pixels, not {height}x{width}")
        return wanted, []
    matching = [grid for grid in grids if _sincos_layout(tensors, grid, num_slots) is not None]
    matching = matching or [grid for grid in grids if grid[0] == grid[1]] or grids
    if len(matching) == 1:
        return matching[0], []
    if not grids:
        side = 224 // patch_size
        return (side, side), [f"no tensor shows the size of images; {side * patch_size} pixels are assumed"]
    sizes = ", ".join(f"{h * patch_size}x{w * patch_size}" for h, w in grids[:8])
    raise ForeignFileError(f"the images may have had {sizes} pixels; give their height and width as --image-size HxW")


def _grids(tensors: Mapping[str, Tensor], num_slots: int) -> Sequence[tuple[int, int]]:
    """List the grids that the number of rows allows."""
    if "pos_embed" in tensors:
        num_patches = tensors["pos_embed"].shape[-2] - num_slots
        return [(h, num_patches // h) for h in range(1, num_patches + 1) if num_patches % h == 0]
    if _TABLE in tensors:
        offsets = len(tensors[_TABLE]) - 3 * num_slots
        odd = [(a, offsets // a) for a in range(1, offsets + 1, 2) if offsets % a == 0]
        grids = [((a + 1) // 2, (b + 1) // 2) for a, b in odd if b % 2]
        index = tensors.get(_INDEX)
        matching = [g for g in grids if index is not None and relative_position_index(g, bool(num_slots)).equal(index)]
        if index is not None and not matching:
            raise ForeignFileError(f"{_INDEX} numbers the rows of the table in another order than BEiT's code")
        return matching or grids
    return []


def _sincos_layout(tensors: Mapping[str, Tensor], grid: tuple[int, int], num_slots: int) -> SincosLayout | None:
    """Return the layout of sin-cos values that a table has, compared entry by entry; None for every other table."""
    table = tensors.get("pos_embed")
    if table is None or table.shape[-1] % 4 or table.shape[-2] != num_slots + grid[0] * grid[1]:
        return None
    tolerance = _SINCOS_TOLERANCE.get(table.dtype, 1e-5)
    for layout in SincosLayout:
        expected = sincos_positions(grid, table.shape[-1], layout, num_prefix=num_slots)
        if (table.float() - expected).abs().max() <= tolerance:
            return layout
    return None


def _with_positions(
    config: ViTConfig, tensors: Mapping[str, Tensor], known: Known
) -> tuple[ViTConfig, dict[str, Tensor], list[str]]:
    """Replace a sin-cos table by the exact one, and complete the index of relative positions."""
    own, remarks = dict(tensors), []
    if _TABLE in own:
        own[_INDEX] = relative_position_index(config.grid, config.class_token)
    if config.positions is Positions.none:
        return config, own, remarks
    layout = _sincos_layout(own, config.grid, int(config.class_token))
    if layout is not None:
        own["pos_embed"] = sincos_positions(config.grid, config.embed_dim, layout, num_prefix=int(config.class_token))
        return replace(config, positions=Positions.sincos, sincos_layout=layout), own, remarks
    own["pos_embed"] = own["pos_embed"].float()
    if known.method in ("ijepa", "mae", "moco_v3", "cae", "vjepa"):
        remarks.append(
            f"pos_embed is not the sin-cos table that {known.method} trains with; it is kept as learned positions"
        )
    offset = 0.1 if known.method in ("dino", "ibot", "dinov2") else 0.0  # how their codes interpolate the table
    return replace(config, position_offset=offset), own, remarks
