"""Golden fixtures of SimMIM (microsoft/SimMIM, its ViT): a tiny model's run, recomputed by ours."""

from collections.abc import Mapping

from torch import Tensor, nn

from ssl_zoo.interop.official import BEIT_ENCODER, NameMap, load_official, split_simmim, to_official, to_pixel_shuffle
from ssl_zoo.method import Batch
from ssl_zoo.methods.simmim import SimMIM, SimMIMConfig
from ssl_zoo.nn import unpatchify
from ssl_zoo.targets import PixelsConfig
from ssl_zoo.testing.golden.beit import beit_backbone, load_mask_token, masked_batch
from ssl_zoo.testing.golden.fixture import FEATURES, FINAL_WEIGHTS, Comparison, Finding, Fixture, FixtureError, blame
from ssl_zoo.testing.golden.training import Replay, adamw, official_gradients, reference_method


def recognises(fixture: Fixture) -> bool:
    return str(fixture.config.get("method", "")).startswith("SimMIM")


def verify(fixture: Fixture) -> list[Finding]:
    """Recompute everything that the file stores from its weights and inputs."""
    with blame(fixture, "config"):
        backbone = beit_backbone(fixture, "init.encoder.")
        method = reference_method(SimMIMConfig(), backbone, PixelsConfig(normalize=False))
    _load(fixture, method)
    replay = _Replay(fixture, method)
    replay.train()
    head = {f"0.{name}": to_pixel_shuffle(tensor) for name, tensor in method.head.state_dict().items()}
    encoder = to_official(method.encoder, BEIT_ENCODER) | {"mask_token": method.mask_token.detach()}
    for part, weights in (("encoder", encoder), ("decoder", head)):
        replay.comparison.add_weights(f"final.{part}", weights, weights, FINAL_WEIGHTS)
    return replay.comparison.findings()


def _load(fixture: Fixture, method: SimMIM) -> None:
    encoder, mask_token, head = split_simmim(fixture.group("init."))
    with blame(fixture, "init"):
        load_official(method.encoder, encoder, BEIT_ENCODER)
        load_official(method.head, head, NameMap())
    load_mask_token(fixture, "init.encoder.mask_token", mask_token, method.mask_token)


class _Replay(Replay):
    method: SimMIM

    def __init__(self, fixture: Fixture, method: SimMIM) -> None:
        milestones = fixture.config.get("milestones")
        if not isinstance(milestones, list):
            raise FixtureError(f"{fixture.path}: config.milestones={milestones!r} must be a list of epochs")
        optim = adamw(
            fixture,
            lr=fixture.number("lr"),
            warmup_lr=fixture.number("warmup_lr"),
            warmup_epochs=fixture.number("warmup_epochs"),
            milestones=milestones,
            milestone_factor=fixture.number("gamma"),
            weight_decay=fixture.number("wd"),
            final_weight_decay=fixture.number("wd"),
            schedule_offset=-1,  # the reference updates its schedule after a step, with that step's number
        )
        super().__init__(fixture, method, Comparison(fixture), optim)

    def batch(self, number: int) -> Batch:
        return masked_batch(self.fixture, number, self.method.encoder.grid)

    def watched(self) -> Mapping[str, nn.Module]:
        return {"encoded": self.method.encoder, "predicted": self.method.head}

    def compare_forward(self, number: int, batch: Batch, loss: Tensor, seen: Mapping[str, Tensor]) -> None:
        encoder = self.method.encoder
        if number == 0:
            maps = encoder.patches(seen["encoded"]).transpose(1, 2).unflatten(2, encoder.grid)
            pixels = unpatchify(seen["predicted"], encoder.grid, encoder.patch_size)
            self.comparison.add("step0.encoder_output", maps, FEATURES)
            self.comparison.add("step0.reconstruction", pixels, FEATURES)

    def gradients(self) -> dict[str, Tensor]:
        encoder = official_gradients(self.method.encoder, BEIT_ENCODER, "encoder.")
        head = {f"decoder.0.{name}": to_pixel_shuffle(p.grad) for name, p in self.method.head.named_parameters()}
        return encoder | {"encoder.mask_token": self.method.mask_token.grad} | head
