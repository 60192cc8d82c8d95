"""Networks: the vision transformer, a narrow one for predictors and decoders, position embeddings, token indexing."""

from ssl_zoo.nn.backbone import BACKBONES, BackboneConfig
from ssl_zoo.nn.blocks import LayerOutput, NormPosition, set_fused_attention
from ssl_zoo.nn.convolutions import ConvolutionalDecoder
from ssl_zoo.nn.cross_attention import TRANSFORMER_BLOCKS, CrossAttentionBlock
from ssl_zoo.nn.diversity import cosine_between_images, mean_std, normalized_entropy
from ssl_zoo.nn.initialization import Initialization
from ssl_zoo.nn.patch_embed import PatchStem
from ssl_zoo.nn.pos_embed import SincosLayout, interpolate_positions, sincos_positions
from ssl_zoo.nn.resize import resize_vit, source_grid
from ssl_zoo.nn.tokens import distance_to_nearest, mean_per_patch, patchify, scatter_back, take, unpatchify
from ssl_zoo.nn.transformer import NarrowViT
from ssl_zoo.nn.vit import Positions, ViT, ViTConfig
