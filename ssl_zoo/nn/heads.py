"""Projection heads."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.nn.batch_norm import BatchNorm
from ssl_zoo.nn.initialization import TOKEN_STD
from ssl_zoo.settings import Settings, setting
from ssl_zoo.world import World


class Prototypes(nn.Module):
    """A weight-normalised linear layer without bias: row k has the direction of ``weight_v`` and length ``weight_g``.

    Args:
        unit_length: the lengths stay 1 and are not trained, so that unit vectors give cosine similarities.
    """

    def __init__(self, dim: int, num_prototypes: int, *, unit_length: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1), requires_grad=not unit_length)
        self.weight_v = nn.Parameter(torch.empty(num_prototypes, dim))
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "*S D"]) -> Float[Tensor, "*S K"]:
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=1))


@dataclass
class PrototypeHeadConfig(Settings):
    """The settings of a prototype head, among those of its method."""

    num_prototypes: int = setting(65536, "outputs of the head", at_least=1)
    head_dim: int = setting(2048, "width of the head's hidden layers", at_least=1)
    head_layers: int = setting(3, "linear layers of the head before the prototypes", at_least=1)
    bottleneck_dim: int = setting(256, "width of the unit vectors that meet the prototypes", at_least=1)
    norm_last_layer: bool = setting(True, "prototypes keep length one; the reference lets ViT-S learn their lengths")


class PrototypeHead(nn.Module):
    """DINO's projection head (arXiv 2104.14294, sec. 3.1 and appendix C): MLP, L2 normalisation, prototypes.

    Args:
        dim: width of the features.
    """

    def __init__(self, config: PrototypeHeadConfig, dim: int) -> None:
        super().__init__()
        widths = [dim, *[config.head_dim] * (config.head_layers - 1), config.bottleneck_dim]
        layers = [nn.Linear(width_in, width_out) for width_in, width_out in itertools.pairwise(widths)]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=TOKEN_STD)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], *(part for layer in layers[1:] for part in (nn.GELU(), layer)))
        self.last_layer = Prototypes(config.bottleneck_dim, config.num_prototypes, unit_length=config.norm_last_layer)

    def forward(self, features: Float[Tensor, "*S D"]) -> Float[Tensor, "*S K"]:
        return self.last_layer(F.normalize(self.mlp(features).float(), dim=-1))


class ProjectionHead(nn.Module):
    """An MLP with batch normalization over all ranks: the projector of SimCLR and MoCo v3, the head of MSN.

    Its layers are ``fc1``, ``bn1``, ``fc2`` and so on, as in MSN's reference code.

    Args:
        widths: of the input, of every hidden layer and of the output.
        activation: between the layers, after batch normalization.
        batch_norm: normalise the hidden layers.
        batch_norm_output: normalise the output too, without scale and offset.
        bias: of the linear layers.
        std: standard deviation of initial weights, biases being zero; None = torch's default for both.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        activation: type[nn.Module],
        batch_norm: bool = True,
        batch_norm_output: bool = False,
        bias: bool = True,
        std: float | None = None,
    ) -> None:
        super().__init__()
        self.activation, self.num_layers = activation(), len(widths) - 1
        for number, (width_in, width_out) in enumerate(itertools.pairwise(widths), start=1):
            is_last = number == self.num_layers
            layer = nn.Linear(width_in, width_out, bias=bias)
            if std is not None:
                nn.init.trunc_normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)
            setattr(self, f"fc{number}", layer)
            if batch_norm_output if is_last else batch_norm:
                setattr(self, f"bn{number}", BatchNorm(width_out, affine=not is_last))

    def forward(self, features: Float[Tensor, "S D"], world: World) -> Float[Tensor, "S O"]:
        """Project features.

        Args:
            world: the ranks whose rows are normalised together.
        """
        x = features
        for number in range(1, self.num_layers + 1):
            x = getattr(self, f"fc{number}")(x)
            norm = getattr(self, f"bn{number}", None)
            x = x if norm is None else norm(x, world)
            x = x if number == self.num_layers else self.activation(x)
        return x
