"""The vision transformer that every method trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssl_zoo.nn import kernels
from ssl_zoo.nn.backbone import BACKBONES, BackboneConfig
from ssl_zoo.nn.blocks import LayerOutput, NormPosition, transformer_blocks
from ssl_zoo.nn.initialization import TOKEN_STD, Initialization, initialize, initialize_token, scale_branches
from ssl_zoo.nn.patch_embed import ConvolutionalPatchEmbedding, PatchEmbedding, PatchStem
from ssl_zoo.nn.pos_embed import SincosLayout, interpolate_positions, sincos_positions
from ssl_zoo.nn.relative_position import RelativePositionBias
from ssl_zoo.nn.tokens import take
from ssl_zoo.settings import setting


class Positions(Enum):
    """The position embedding of patch tokens."""

    sincos = "sincos"  # fixed; recomputed for other grids
    learned = "learned"  # a trained table; interpolated for other grids
    none = "none"


@dataclass
class ViTConfig(BackboneConfig):
    """The defaults are those of ViT-B/16 (arXiv 2010.11929, table 1)."""

    patch_stem: PatchStem = setting(
        PatchStem.linear, "layers that embed a patch: linear, or convolutional, inside each patch (arXiv 2106.14881)"
    )
    embed_dim: int = setting(768, "width of a token", at_least=1)
    depth: int = setting(12, "number of transformer blocks", at_least=1)
    num_heads: int = setting(12, "attention heads per block", at_least=1)
    mlp_ratio: float = setting(4.0, "hidden width of a block's MLP over embed_dim")
    positions: Positions = setting(Positions.sincos, "position embedding: sincos (fixed), learned or none")
    sincos_layout: SincosLayout = setting(SincosLayout.col_first, "coordinate in the first half of sin-cos channels")
    position_offset: float = setting(
        0.0, "added to grid sides when learned positions are resampled; DINO: 0.1", at_least=0, below=1
    )
    class_token: bool = setting(False, "prepend a class token; its position embedding is zero with sincos")
    num_registers: int = setting(0, "registers after the class token, unpositioned (arXiv 2309.16588)", at_least=0)
    relative_position_bias: bool = setting(False, "learned attention biases per offset, one table for all blocks")
    qkv_bias: bool = setting(True, "biases of queries, keys and values")
    key_bias: bool = setting(True, "false leaves out the biases of keys (BEiT)")
    norm_position: NormPosition = setting(
        NormPosition.pre, "pre: before each branch and at the end; post: after the embedding and each branch"
    )
    final_norm: bool = setting(True, "layer norm after the last block, with norm_position=pre")
    norm_eps: float = setting(1e-6, "epsilon of every layer norm")
    layer_scale: float | None = setting(None, "initial factor of LayerScale; null leaves LayerScale out")
    drop_path: float = setting(0.0, "stochastic depth rate of the last block, linear from 0", at_least=0, below=1)
    attention_dropout: float = setting(0.0, "probability of dropping an attention weight", at_least=0, below=1)
    initialization: Initialization = setting(
        Initialization.normal,
        "normal (I-JEPA), xavier_uniform (MAE), trunc_normal_scaled (BEiT, data2vec, SimMIM), "
        "xavier_uniform_normal_patch_embed (CAE), "
        "normal_xavier_patch_embed (data2vec 2.0), normal_default_patch_embed (DINO, iBOT, MSN)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()

        dim = self.embed_dim
        if dim % self.num_heads:
            raise ValueError(f"backbone.embed_dim={dim} is no multiple of backbone.num_heads={self.num_heads}")
        if self.positions is Positions.sincos and dim % 4:
            raise ValueError(f"backbone.embed_dim={dim} must be a multiple of 4 for backbone.positions=sincos")
        if round(dim * self.mlp_ratio) < 1:
            raise ValueError(f"backbone.mlp_ratio={self.mlp_ratio} gives the blocks no hidden units")
        if self.relative_position_bias and self.num_registers:
            raise ValueError(
                f"backbone.relative_position_bias=true excludes backbone.num_registers={self.num_registers}; "
                "set one of them to its default"
            )


@BACKBONES.register("vit", ViTConfig)
class ViT(nn.Module):
    """Vision transformer that encodes all patches, some of them, or mask tokens in the place of some.

    It is built on timm's patch embedding and blocks, so that its state dict has the names of timm and of the official
    codes. The mask token belongs to the method and is an argument.

    Methods call the instance, not ``embed`` and ``encode``: under FSDP only ``forward`` gathers sharded weights.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_dim, self.patch_size, self.grid = config.embed_dim, config.patch_size, config.grid
        self.num_patches = self.grid[0] * self.grid[1]
        self.num_prefix_tokens = int(config.class_token) + config.num_registers
        self._num_slots = int(config.class_token)  # rows of the position table before those of the patches
        self._tables: dict[tuple[tuple[int, int], torch.device], Tensor] = {}  # sin-cos tables of other grids

        dim = config.embed_dim
        if config.patch_stem is PatchStem.linear:
            self.patch_embed = PatchEmbedding(None, config.patch_size, config.in_channels, dim)
        else:
            self.patch_embed = ConvolutionalPatchEmbedding(config.patch_size, config.in_channels, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.empty(1, config.num_registers, dim)) if config.num_registers else None
        self.pos_embed = self._empty_positions()
        self.blocks = transformer_blocks(
            dim,
            config.depth,
            config.num_heads,
            mlp_ratio=config.mlp_ratio,
            norm_eps=config.norm_eps,
            qkv_bias=config.qkv_bias,
            key_bias=config.key_bias,
            layer_scale=config.layer_scale,
            drop_path=config.drop_path,
            attention_dropout=config.attention_dropout,
            norm_position=config.norm_position,
        )
        self.rel_pos_bias = None
        if config.relative_position_bias:
            self.rel_pos_bias = RelativePositionBias(self.grid, config.num_heads, config.class_token)
        is_pre = config.norm_position is NormPosition.pre
        self.norm_pre = nn.Identity() if is_pre else nn.LayerNorm(dim, eps=config.norm_eps)
        has_final = is_pre and config.final_norm
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps) if has_final else nn.Identity()
        self.reset_parameters()

    def _empty_positions(self) -> nn.Parameter | None:
        if self.config.positions is Positions.none:
            return None
        # A frozen parameter and not a buffer, as in the official codes, whose checkpoints and counts include it.
        table = torch.empty(1, self._num_slots + self.num_patches, self.embed_dim)
        return nn.Parameter(table, requires_grad=self.config.positions is Positions.learned)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sample all weights from torch's global generator, e.g. after ``to_empty`` on a model built on meta."""
        initialize(self, self.config.initialization)
        for block in self.blocks:
            for scale in (block.ls1, block.ls2):
                if not isinstance(scale, nn.Identity):
                    scale.reset_parameters()
        if self.config.initialization.value.scale_branches:
            scale_branches(self.blocks)
        if self.rel_pos_bias is not None:
            nn.init.zeros_(self.rel_pos_bias.relative_position_bias_table)
        if self.cls_token is not None:
            initialize_token(self.cls_token, self.config.initialization)
        if self.reg_token is not None:
            nn.init.normal_(self.reg_token, std=TOKEN_STD)
        if self.config.positions is Positions.sincos:
            self.pos_embed.copy_(self._sincos(self.grid))
        elif self.config.positions is Positions.learned:
            nn.init.normal_(self.pos_embed, std=TOKEN_STD)

    def forward(
        self,
        images: Float[Tensor, "B channels H W"],
        keep: Int[Tensor, "B *K"] | None = None,
        *,
        masked: Bool[Tensor, "B N"] | None = None,
        mask_token: Float[Tensor, "#B #N D"] | None = None,
        layers: Sequence[int] | None = None,
        layer_output: LayerOutput = LayerOutput.block,
    ) -> Float[Tensor, "B *L D"] | list[Float[Tensor, "B *L D"]]:
        """Return ``encode(embed(images, ...), ...)``; both describe the arguments and the result.

        With ``keep`` of shape (B, C, K) a patch is embedded once for all C contexts where that is cheaper.
        """
        if keep is None:
            return self.encode(self.embed(images, masked, mask_token), None, layers, layer_output)
        if masked is None and keep.shape[1:].numel() < self.num_patches:
            return self.encode(self._embed_kept(images, keep), keep, layers, layer_output)
        return self.encode(take(self.embed(images, masked, mask_token), keep), keep, layers, layer_output)

    def patches(self, tokens: Float[Tensor, "*B L D"]) -> Float[Tensor, "*B K D"]:
        """Leave out the prefix tokens of an output."""
        return tokens[..., self.num_prefix_tokens :, :]

    def pooled(self, tokens: Float[Tensor, "S L D"]) -> Float[Tensor, "S D"]:
        """Return one vector per image: the class token, or the mean over the tokens of an encoder without."""
        return tokens.mean(dim=1) if self.cls_token is None else tokens[:, 0]

    def embed(
        self,
        images: Float[Tensor, "B channels H W"],
        masked: Bool[Tensor, "B N"] | None = None,
        mask_token: Float[Tensor, "#B #N D"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Embed patches and add their position embeddings, without prefix tokens.

        Args:
            images: of the configured or another size.
            masked: True = ``mask_token`` replaces the patch before positions are added (data2vec, SimMIM, iBOT).

        Raises:
            ValueError: the sides of the images are no multiples of the patch size.
        """
        grid = self.config.grid_of((images.shape[-2], images.shape[-1]))
        tokens = self.patch_embed(images)
        if masked is not None:
            tokens = torch.where(masked[..., None], mask_token.to(tokens.dtype), tokens)
        return tokens if self.pos_embed is None else tokens + self._patch_positions(grid)

    def _embed_kept(
        self, images: Float[Tensor, "B channels H W"], keep: Int[Tensor, "B *K"]
    ) -> Float[Tensor, "B *K D"]:
        """Return ``take(embed(images), keep)``, but embed only these patches and scatter no gradient."""
        grid = self.config.grid_of((images.shape[-2], images.shape[-1]))
        tokens = self.patch_embed.project(take(self.patch_embed.cut(images), keep))
        return tokens if self.pos_embed is None else tokens + F.embedding(keep, self._patch_positions(grid)[0])

    def encode(
        self,
        tokens: Float[Tensor, "B *K D"],
        keep: Int[Tensor, "B *K"] | None = None,
        layers: Sequence[int] | None = None,
        layer_output: LayerOutput = LayerOutput.block,
    ) -> Float[Tensor, "B *L D"] | list[Float[Tensor, "B *L D"]]:
        """Run the blocks on prefix tokens and all or some patch tokens.

        Args:
            tokens: as ``embed`` returns them, only those of ``keep`` if it is given.
            keep: visible patches (B, K), or (B, C, K) for C contexts per image that don't attend to each other.
            layers: indices of blocks whose outputs are returned, negative ones counted from the last; the blocks after
                them don't run.
            layer_output: which output of these blocks is returned.

        Returns:
            Tokens after the final norm, (B, P + N, D), (B, P + K, D) or (B, C, P + K, D), the P prefix tokens first;
            with ``layers`` a list of such tensors before the final norm.

        Raises:
            ValueError: ``layers`` is empty or contains an index that is out of range.
        """
        leading = tokens.shape[:-2]
        x = self.norm_pre(self._with_prefix(tokens.flatten(0, -3)))
        bias = self._attention_bias(x, keep)
        if layers is None:
            for block in self.blocks:
                x = block(x, bias)
            return self.norm(x).unflatten(0, leading)
        wanted = self._block_indices(layers)
        outputs = {}
        for index, block in enumerate(islice(self.blocks, max(wanted) + 1)):
            if index in wanted:
                x, output = block(x, bias, layer_output=layer_output)
                outputs[index] = output.unflatten(0, leading)
            else:
                x = block(x, bias)
        return [outputs[index] for index in wanted]

    def _attention_bias(
        self, x: Float[Tensor, "S L D"], keep: Int[Tensor, "B *K"] | None
    ) -> Float[Tensor, "#S heads L L"] | None:
        if self.rel_pos_bias is None:
            return None
        if keep is None and x.shape[1] != self.num_prefix_tokens + self.num_patches:
            raise ValueError(
                "backbone.relative_position_bias=true needs images of the configured size with "
                f"{self.num_patches} patches, not {x.shape[1] - self.num_prefix_tokens}"
            )
        bias = self.rel_pos_bias(None if keep is None else keep.flatten(0, -2))
        return bias.to(kernels.matmul_dtype(x))  # fused kernels take it in the dtype of the queries

    def _with_prefix(self, tokens: Float[Tensor, "S K D"]) -> Float[Tensor, "S L D"]:
        prefix = []
        if self.cls_token is not None:
            prefix.append(self.cls_token if self.pos_embed is None else self.cls_token + self.pos_embed[:, :1])
        if self.reg_token is not None:
            prefix.append(self.reg_token)
        if not prefix:
            return tokens
        return torch.cat([*(token.to(tokens.dtype).expand(tokens.shape[0], -1, -1) for token in prefix), tokens], dim=1)

    def _block_indices(self, layers: Sequence[int]) -> list[int]:
        depth = len(self.blocks)
        if not layers or not all(-depth <= index < depth for index in layers):
            raise ValueError(f"layers={list(layers)} must be at least one index in {-depth}..{depth - 1}")
        return [index % depth for index in layers]

    def _patch_positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 N D"]:
        if grid == self.grid:
            return self.pos_embed[:, self._num_slots :]
        if self.config.positions is Positions.learned:
            table = interpolate_positions(
                self.pos_embed, self.grid, grid, num_prefix=self._num_slots, offset=self.config.position_offset
            )
            return table[:, self._num_slots :]
        key = grid, self.pos_embed.device
        if key not in self._tables:
            self._tables[key] = self._sincos(grid)[:, self._num_slots :]
        return self._tables[key].to(self.pos_embed.dtype)

    def _sincos(self, grid: tuple[int, int]) -> Float[Tensor, "1 L D"]:
        layout, device = self.config.sincos_layout, self.pos_embed.device
        return sincos_positions(grid, self.embed_dim, layout, num_prefix=self._num_slots, device=device)
