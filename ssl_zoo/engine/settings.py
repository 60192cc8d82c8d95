"""Configuration of the engine: how long, how large, on what, and what is written while it runs."""

from dataclasses import dataclass
from enum import Enum

from ssl_zoo.settings import Settings, setting


class Device(Enum):
    """Where the networks live."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(Enum):
    """Number format of matrix products; parameters and optimizer state are float32 always."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Parallel(Enum):
    """How several ranks train one method; both give the same numbers."""

    ddp = "ddp"  # every rank holds everything and gradients are averaged (DistributedDataParallel)
    fsdp2 = "fsdp2"  # every rank holds a part of weights, averages, gradients and moments (fully_shard)


@dataclass
class TrainerConfig:
    """Budget, batch and machine of a run."""

    batch_size: int = setting(2048, "images per optimizer step, summed over ranks and micro-batches")
    gradient_accumulation_steps: int = setting(1, "parts in which a rank's images of one step pass through the network")
    epochs: float = setting(300.0, "passes over the training images")
    num_steps: int | None = setting(None, "optimizer steps of the run; replaces what epochs gives")
    device: Device = setting(Device.auto, "auto takes a CUDA device when there is one")
    precision: Precision = setting(Precision.auto, "auto is bf16 where the device multiplies it natively, else fp32")
    parallel: Parallel = setting(
        Parallel.ddp,
        "ddp: every rank holds the whole method; fsdp2: a part of it, and blocks are gathered when they run",
    )
    reshard_after_forward: bool = setting(
        True, "of fsdp2: false keeps gathered weights until the backward pass, for more memory and fewer exchanges"
    )
    compile: bool = setting(False, "compile every transformer block with torch.compile")
    fused_attention: bool | None = setting(
        None, "torch's fused attention kernel; null: but for bf16 on a CPU with a gradient, where it is the slower one"
    )
    cuda_graphs: bool = setting(
        False, "record each step's forward and backward pass as a CUDA graph: small networks run at the GPU's speed"
    )
    activation_checkpointing: bool = setting(
        False, "keep only the inputs of blocks for the backward pass and run each block twice: less memory, more time"
    )
    checkpoint_every: int = setting(1000, "steps between checkpoints; the last step is always saved")
    keep_checkpoints: int = setting(3, "newest checkpoints kept in the run directory")
    keep_every: int = setting(0, "checkpoints of steps that are multiples of it are kept for good; 0 = none")
    async_checkpoints: bool = setting(
        True, "write checkpoints while the training goes on, from a copy of the state in the host's memory"
    )
    timeout_minutes: float = setting(30.0, "after which ranks that wait for another one end the run with an error")

    def __post_init__(self) -> None:
        for key in ("batch_size", "gradient_accumulation_steps", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, key) < 1:
                raise ValueError(f"trainer.{key}={getattr(self, key)}: needs at least 1")
        if self.keep_every < 0:
            raise ValueError(f"trainer.keep_every={self.keep_every} must be 0 or more")
        if self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"trainer.keep_every={self.keep_every} is no multiple of trainer.checkpoint_every="
                f"{self.checkpoint_every}, so that some of its steps would not be saved at all"
            )
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"trainer.num_steps={self.num_steps}: needs at least 1, or null to use trainer.epochs")
        if self.timeout_minutes <= 0:
            raise ValueError(f"trainer.timeout_minutes={self.timeout_minutes}: needs a positive number")
        if self.epochs <= 0:
            raise ValueError(f"trainer.epochs={self.epochs}: needs a positive number")


class AlarmPolicy(Enum):
    """What happens when a run collapses."""

    none = "none"
    warn = "warn"
    stop = "stop"


@dataclass
class AlarmConfig(Settings):
    """When a run counts as collapsed."""

    section = "monitor.alarm"

    policy: AlarmPolicy = setting(
        AlarmPolicy.warn, "warn says so, stop ends the run with an error after saving it, none does not look"
    )
    patience: int = setting(5, "records in a row with a metric beyond its limit before the alarm goes off", at_least=1)
    limits: dict[str, float] = setting({}, "bounds by metric that replace the method's, e.g. {target_cosine: 0.995}")


@dataclass
class MonitorConfig:
    """What is reported while a run goes on."""

    log_every: int = setting(10, "steps between lines of metrics.jsonl and TensorBoard scalars")
    images_every: int = setting(1000, "steps between pictures in figures/ and TensorBoard; 0 draws none")
    tensorboard: bool = setting(True, "write TensorBoard event files")
    progress_bar: bool = setting(True, "a live bar on a terminal; plain lines otherwise")
    alarm: AlarmConfig = setting(AlarmConfig(), "warning or stop when all images get the same targets")

    def __post_init__(self) -> None:
        if self.log_every < 1:
            raise ValueError(f"monitor.log_every={self.log_every}: needs at least 1")
