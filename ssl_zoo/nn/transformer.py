"""The narrow vision transformer that predicts masked patches from visible ones: I-JEPA's predictor, MAE's decoder."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_zoo.nn.blocks import transformer_blocks
from ssl_zoo.nn.initialization import TOKEN_STD, Initialization, initialize
from ssl_zoo.nn.pos_embed import SincosLayout, sincos_positions


class NarrowViT(nn.Module):
    """Predicts target patches from the encoded tokens of context patches, in blocks of its own width.

    The official names map one to one: ``embed_in``, ``pos_embed``, ``blocks``, ``norm`` and ``proj_out`` are I-JEPA's
    ``predictor_{embed, pos_embed, blocks, norm, proj}`` and MAE's ``decoder_{embed, pos_embed, blocks, norm, pred}``.

    Methods call the instance: under FSDP only ``forward`` gathers sharded weights.

    Args:
        dim_in: width of the encoder's tokens.
        dim: width of the blocks.
        dim_out: width of a prediction.
        grid: patch rows and columns, for the fixed sin-cos positions of width ``dim``.
        num_prefix_tokens: tokens before the patch tokens, without position embedding (MAE's class token).

    Raises:
        ValueError: ``dim`` is no multiple of ``num_heads`` or of 4.
    """

    def __init__(
        self,
        *,
        dim_in: int,
        dim: int,
        dim_out: int,
        depth: int,
        num_heads: int,
        grid: tuple[int, int],
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        num_prefix_tokens: int = 0,
        sincos_layout: SincosLayout = SincosLayout.col_first,
        initialization: Initialization = Initialization.normal,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"the width {dim} of a predictor or decoder is no multiple of its {num_heads} heads")
        self.grid, self.num_prefix_tokens = grid, num_prefix_tokens
        self.sincos_layout, self.initialization = sincos_layout, initialization
        num_slots = num_prefix_tokens + grid[0] * grid[1]
        self.embed_in = nn.Linear(dim_in, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, num_slots, dim), requires_grad=False)
        self.blocks = transformer_blocks(dim, depth, num_heads, mlp_ratio=mlp_ratio, norm_eps=norm_eps)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.proj_out = nn.Linear(dim, dim_out)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sample all weights from torch's global generator."""
        initialize(self, self.initialization)
        nn.init.normal_(self.mask_token, std=TOKEN_STD)
        dim, device = self.pos_embed.shape[-1], self.pos_embed.device
        num_prefix = self.num_prefix_tokens
        self.pos_embed.copy_(sincos_positions(self.grid, dim, self.sincos_layout, num_prefix=num_prefix, device=device))

    def forward(
        self,
        tokens: Float[Tensor, "*B L D"],
        context: Int[Tensor, "*B K"],
        targets: Int[Tensor, "*B M T"],
        *,
        noise: Float[Tensor, "*B M T D"] | None = None,
        with_context: bool = False,
    ) -> Float[Tensor, "*B M T O"]:
        """Predict each of the M target blocks on its own.

        Mask tokens of different blocks never attend to each other: each block gets a copy of the context
        (I-JEPA, arXiv 2301.08243, sec. 3). M = 1 predicts all masked patches together (MAE).

        Args:
            tokens: encoded prefix tokens and context patches, L = num_prefix_tokens + K, per image, or per context of
                an image with a second leading dimension.
            context: the patches that ``tokens`` encode, without prefix tokens.
            targets: the patches to predict.
            noise: added to the mask tokens through the projection of encoded tokens (StoP, arXiv 2308.00566, sec. 3),
                so that a predictor can reduce it by reading less of its context alone.
            with_context: predict the patches of ``context`` too, before those of ``targets``: (*B, M, K + T, O).
        """
        *leading, num_blocks, num_targets = targets.shape
        known = self.embed(tokens.flatten(0, -3), context.flatten(0, -2))
        queries = self.queries(targets.flatten(0, -3))
        if noise is not None:
            queries = queries + self.embed_in(noise.flatten(0, -4))
        queries = queries.to(known.dtype)
        known = known[:, None].expand(-1, num_blocks, -1, -1)
        x = torch.cat([known, queries], dim=2).flatten(0, 1)
        *blocks, last_block = self.blocks
        for block in blocks:
            x = block(x)
        # After its keys and values the last block acts on each token alone, so context tokens stop there.
        x = last_block(x, last=num_targets + (context.shape[-1] if with_context else 0))
        return self.proj_out(self.norm(x)).unflatten(0, (*leading, num_blocks))

    def embed(self, tokens: Float[Tensor, "B L D"], context: Int[Tensor, "B K"]) -> Float[Tensor, "B L dim"]:
        """Project encoded tokens to this width and add the position embeddings of patches."""
        return self.embed_in(tokens) + F.pad(self._at(context), (0, 0, self.num_prefix_tokens, 0))

    def queries(self, targets: Int[Tensor, "B *T"]) -> Float[Tensor, "B *T dim"]:
        """Return one mask token per target patch: the shared vector plus the position embedding of the patch."""
        return self.mask_token[0, 0] + self._at(targets)

    def _at(self, index: Int[Tensor, "B *K"]) -> Float[Tensor, "B *K dim"]:
        return F.embedding(index, self.pos_embed[0, self.num_prefix_tokens :])
