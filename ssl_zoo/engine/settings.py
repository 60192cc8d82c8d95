"""Configuration of the engine: budget, batch, device, checkpoints and monitoring of a run."""

from dataclasses import dataclass
from enum import Enum

from ssl_zoo.settings import Settings, setting


class Device(Enum):
    """The device that trains."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"  # the GPU of a Mac


class Precision(Enum):
    """The dtype of matmuls; parameters and optimizer state are always float32."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Parallel(Enum):
    """How several ranks train one method; both give the same losses and weights."""

    ddp = "ddp"  # all weights on every rank, gradients averaged (DistributedDataParallel)
    fsdp2 = "fsdp2"  # weights, EMA weights, gradients and optimizer state sharded (fully_shard)


@dataclass
class TrainerConfig(Settings):
    """Budget, batch and device of a run."""

    section = "trainer"

    batch_size: int = setting(2048, "images per optimizer step, summed over ranks and micro-batches", at_least=1)
    gradient_accumulation_steps: int = setting(1, "micro-batches per rank and optimizer step", at_least=1)
    epochs: float = setting(300.0, "epochs of the run", above=0)
    num_steps: int | None = setting(None, "optimizer steps of the run; overrides epochs", at_least=1)
    device: Device = setting(Device.auto, "auto: cuda where there is one, else cpu; mps has to be asked for")
    precision: Precision = setting(
        Precision.auto, "of matmuls; auto: the faster one, measured on a CPU, and kept when the run resumes"
    )
    parallel: Parallel = setting(Parallel.ddp, "ddp: all weights on every rank; fsdp2: shards, gathered per block")
    reshard_after_forward: bool = setting(True, "fsdp2: false keeps gathered weights for backward: less communication")
    compile: bool = setting(False, "compile every transformer block with torch.compile")
    fused_attention: bool | None = setting(None, "fused attention kernel; null: not for bf16 on a CPU with a gradient")
    cuda_graphs: bool = setting(False, "capture forward and backward as a CUDA graph: less launch overhead")
    activation_checkpointing: bool = setting(False, "recompute blocks in the backward pass: less memory, more time")
    checkpoint_every: int = setting(1000, "steps between checkpoints; the last step is always saved", at_least=1)
    keep_checkpoints: int = setting(3, "newest checkpoints kept in the run directory", at_least=1)
    keep_every: int = setting(0, "checkpoints at multiples of this step are kept permanently; 0 = none", at_least=0)
    async_checkpoints: bool = setting(True, "write checkpoints from a copy in host memory while training continues")
    timeout_minutes: float = setting(30.0, "wait for another rank after which the run ends with an error", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"trainer.keep_every={self.keep_every} is no multiple of trainer.checkpoint_every="
                f"{self.checkpoint_every}, so that some of its steps would not be saved at all"
            )


class AlarmPolicy(Enum):
    """The reaction to a collapse."""

    none = "none"
    warn = "warn"
    stop = "stop"


@dataclass
class AlarmConfig(Settings):
    """When a run counts as collapsed."""

    section = "monitor.alarm"

    policy: AlarmPolicy = setting(AlarmPolicy.warn, "warn logs, stop saves and ends the run with an error, none is off")
    patience: int = setting(5, "consecutive records beyond a limit before the alarm is raised", at_least=1)
    limits: dict[str, float] = setting({}, "bounds by metric that replace the method's, e.g. {target_cosine: 0.995}")


@dataclass
class MonitorConfig(Settings):
    """Logging and visualization during a run; loggers with settings have a section of their name."""

    section = "monitor"

    loggers: list[str] = setting(["jsonl", "tensorboard"], "names of loggers; each has its settings in monitor.NAME")
    log_every: int = setting(10, "steps between records of the loggers", at_least=1)
    images_every: int = setting(1000, "steps between visualizations in figures/ and the loggers; 0 = none", at_least=0)
    progress_bar: bool = setting(True, "a live bar on a terminal; plain lines otherwise")
    alarm: AlarmConfig = setting(AlarmConfig(), "warning or stop when all images get the same targets")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.loggers)) < len(self.loggers):
            raise ValueError(f"monitor.loggers=[{', '.join(self.loggers)}]: name each logger once")
