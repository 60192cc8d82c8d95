"""Golden fixtures store numbers of a published implementation, against which ours are compared.

A fixture is a safetensors file. Its metadata entry ``config`` is JSON with sizes and hyper-parameters. ``init.*`` are
initial weights under official names, ``step{s}.*`` inputs and intermediate results of a step, ``final.*`` weights after
the last step, ``history.*`` one value per step. One verifier per kind of fixture recomputes everything in a file.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn


class FixtureError(ValueError):
    """A fixture can't be verified: it is unreadable, of an unknown kind, or incomplete."""


class Fixture:
    """A fixture in memory; it records which tensors were read, since the others remain unverified.

    Raises:
        FixtureError: the file is missing, truncated, not a safetensors file, or lacks the metadata entry ``config``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise FixtureError(f"{path}: no such file")
        try:
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata() or {}
                self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            self.config: dict[str, Any] = json.loads(metadata["config"])
        except (SafetensorError, OSError) as error:
            raise FixtureError(f"{path}: truncated, or not a safetensors file ({error})") from error
        except KeyError as error:
            raise FixtureError(f"{path}: not a golden fixture: the metadata entry 'config' is missing") from error
        except json.JSONDecodeError as error:
            raise FixtureError(f"{path}: the metadata entry 'config' is not JSON ({error})") from error
        if not isinstance(self.config, dict):
            raise FixtureError(f"{path}: the metadata entry 'config' is not a JSON object")
        self.used: set[str] = set()

    def number(self, key: str) -> float:
        """Return a number of the config, as an int if the file has an int."""
        value = self.config.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise FixtureError(f"{self.path}: config.{key}={value!r} must be a number")
        return value

    def count(self, key: str) -> int:
        """Return a positive integer of the config."""
        value = self.number(key)
        if value < 1 or value != int(value):
            raise FixtureError(f"{self.path}: config.{key}={value} must be an integer of at least 1")
        return int(value)

    def tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise FixtureError(f"{self.path}: tensor {name} is missing")
        self.used.add(name)
        return self.tensors[name]

    def vit_sizes(self) -> dict[str, Any]:
        """Return the encoder's sizes under the field names of ``ViTConfig``, from the names that most fixtures use."""
        names = {"image_size": "image_size", "patch_size": "patch_size", "embed_dim": "dim", "depth": "depth"}
        sizes = {ours: self.count(theirs) for ours, theirs in {**names, "num_heads": "heads"}.items()}
        return {**sizes, "mlp_ratio": self.number("mlp_ratio"), "norm_eps": self.number("norm_eps")}

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with ``prefix``, by the remainder of their names."""
        return {name.removeprefix(prefix): self.tensor(name) for name in self.tensors if name.startswith(prefix)}


@contextmanager
def blame(fixture: Fixture, part: str) -> Iterator[None]:
    """Report a ``ValueError`` of our classes as an error in this part of the file."""
    try:
        yield
    except FixtureError:
        raise
    except ValueError as error:
        raise FixtureError(f"{fixture.path}: {part}: {error}") from error


@contextmanager
def outputs(**modules: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of ``modules`` by name while a method's ``forward`` runs, as in training."""
    recorded: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module):
        return module.register_forward_hook(lambda _module, _inputs, output: recorded.__setitem__(name, output))

    handles = [watch(name, module) for name, module in modules.items()]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Tolerance:
    """``absolute + relative * |stored value|``."""

    absolute: float
    relative: float = 0.0


# A correct float32 implementation stays within these tolerances; common mistakes (EMA before the step, tanh GELU,
# another epsilon) do not. From the fixtures' README.
LOSSES = Tolerance(1e-5)
FEATURES = Tolerance(2e-5)
GRADIENT_NORMS = Tolerance(1e-5, relative=1e-4)
GLOBAL_GRADIENT_NORM = Tolerance(1e-4)
GRADIENTS = Tolerance(1e-5)
INDICES = Tolerance(0.5)  # integers, equal or not
SCHEDULES = Tolerance(1e-9)
FINAL_WEIGHTS = Tolerance(1e-5)


@dataclass(frozen=True)
class Finding:
    """The entry of a quantity with the largest error relative to its tolerance."""

    quantity: str
    error: float
    tolerance: float
    place: str  # tensor and index

    @property
    def within(self) -> bool:
        return self.error <= self.tolerance  # False for nan


class Comparison:
    """Collects the largest error between recomputed and stored tensors per quantity."""

    def __init__(self, fixture: Fixture, rounding_only: Iterable[str] = ()) -> None:
        self.fixture = fixture
        self.rounding_only = (*rounding_only, *fixture.config.get("rounding_only", ()))
        self._worst: dict[str, Finding] = {}

    def add(self, name: str, computed: Tensor, tolerance: Tolerance, *, quantity: str | None = None) -> None:
        """Compare a computed tensor with the stored tensor ``name``, if the file has it.

        Args:
            quantity: row of the table, a prefix of ``name``; defaults to the name itself.
        """
        if name not in self.fixture.tensors:
            return
        quantity = quantity or name
        stored, computed = self.fixture.tensor(name).double(), computed.detach().double()
        if stored.numel() == computed.numel() == 1:
            computed = computed.view_as(stored)
        place = name.removeprefix(quantity).lstrip(".")
        if stored.shape != computed.shape:
            shapes = f"{place} is {list(stored.shape)}, recomputed {list(computed.shape)}".strip()
            self._keep(Finding(quantity, math.inf, tolerance.absolute, shapes))
            return
        allowed = tolerance.absolute + tolerance.relative * stored.abs()
        error = (computed - stored).abs().nan_to_num(math.inf, math.inf)
        # A weight whose gradient is rounding noise fits no tolerance: AdamW turns any noise into a step of about lr.
        error, allowed = torch.where(self._rounding_only(name, stored), 0.0, error).flatten(), allowed.flatten()
        worst = int((error / allowed).argmax())
        index = ", ".join(str(int(i)) for i in torch.unravel_index(torch.tensor(worst), stored.shape))
        self._keep(Finding(quantity, float(error[worst]), float(allowed[worst]), f"{place}[{index}]"))

    def add_weights(
        self, group: str, weights: dict[str, Tensor], exact: dict[str, Tensor], tolerance: Tolerance
    ) -> None:
        """Compare the weights ``group.*`` after the last step, within ``tolerance`` or five times the rounding noise.

        Args:
            exact: the same weights from a float64 run, to measure the noise if the file does not store it.
        """
        noise = self.fixture.config.get("float_noise", {}).get(group)
        if noise is None:
            noise = max(self._noise(f"{group}.{name}", weight, exact[name]) for name, weight in weights.items())
        allowed = Tolerance(max(tolerance.absolute, 5 * noise))
        for name, weight in weights.items():
            self.add(f"{group}.{name}", weight, allowed, quantity=group)

    def _noise(self, name: str, weight: Tensor, exact: Tensor) -> float:
        difference = (weight.double() - exact.double()).abs()
        return float(torch.where(self._rounding_only(name, difference), 0.0, difference).max())

    def add_gradients(self, prefix: str, gradients: Mapping[str, Tensor]) -> None:
        """Compare gradients by official name with ``{prefix}grad_norm.*`` and ``{prefix}grad.*``."""
        norms, full = f"{prefix}grad_norm", f"{prefix}grad"
        for name, gradient in gradients.items():
            self.add(f"{norms}.{name}", gradient.norm(), GRADIENT_NORMS, quantity=norms)
            self.add(f"{full}.{name}", gradient, GRADIENTS, quantity=full)

    def add_history(self, quantity: str, values: list[float], tolerance: Tolerance) -> None:
        self.add(f"history.{quantity}", torch.tensor(values, dtype=torch.float64), tolerance)

    def findings(self) -> list[Finding]:
        """Return one finding per quantity, and one for each stored tensor that was neither used nor recomputed."""
        unused = sorted(self.fixture.tensors.keys() - self.fixture.used)
        return [*self._worst.values(), *(Finding(name, math.inf, 0.0, "not recomputed") for name in unused)]

    def _keep(self, finding: Finding) -> None:
        before = self._worst.get(finding.quantity)
        if before is None or finding.error / finding.tolerance > before.error / before.tolerance:
            self._worst[finding.quantity] = finding

    def _rounding_only(self, name: str, stored: Tensor) -> Bool[Tensor, "..."]:
        """Mask of entries, True = rounding noise. ``"x:key"`` is the middle third (the keys) of a packed projection."""
        noise = torch.zeros_like(stored, dtype=torch.bool)
        if not name.startswith("final."):
            return noise
        for entry in self.rounding_only:
            part, _, third = entry.partition(":")
            if part in name and third == "key":
                noise[len(stored) // 3 : 2 * len(stored) // 3] = True
            elif part in name:
                noise[...] = True
        return noise


@dataclass(frozen=True)
class Verifier:
    """A verifier recognises and recomputes fixtures of one kind.

    ``verify`` raises FixtureError if an input or a setting is missing or does not fit the others.
    """

    recognises: Callable[[Fixture], bool]
    verify: Callable[[Fixture], list[Finding]]


VERIFIERS: dict[str, Verifier] = {}  # by kind


def verify_file(path: Path) -> list[Finding]:
    """Recompute everything in a fixture.

    Raises:
        FixtureError: the file is unreadable, of an unknown kind, or lacks an input.
    """
    fixture = Fixture(path)
    for verifier in VERIFIERS.values():
        if verifier.recognises(fixture):
            return verifier.verify(fixture)
    kind = fixture.config.get("method")
    reason = f"its config has the method {kind!r}" if kind else "its config has no method and its tensors match none"
    raise FixtureError(f"{path}: unknown kind of fixture: {reason}. Known kinds: {', '.join(sorted(VERIFIERS))}")


def table(findings: Iterable[Finding]) -> str:
    """Format a table of the largest error and the tolerance of each quantity."""
    rows = [("quantity", "largest error", "tolerance", "", "at")]
    rows += [
        (f.quantity, f"{f.error:.2e}", f"{f.tolerance:.2e}", "ok" if f.within else "FAIL", f.place) for f in findings
    ]
    quantity, error, tolerance, verdict, _ = (max(len(row[i]) for row in rows) for i in range(5))
    return "\n".join(
        f"{q:<{quantity}}  {e:>{error}}  {t:>{tolerance}}  {v:<{verdict}}  {at}".rstrip() for q, e, t, v, at in rows
    )
