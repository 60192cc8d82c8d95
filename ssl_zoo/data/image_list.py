"""Images that a user names: files, folders and archives in the order of a command line."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from ssl_zoo.data.decode import decode
from ssl_zoo.data.files import GZIP_ENDINGS, Files, open_files, read_file
from ssl_zoo.data.names import printable
from ssl_zoo.data.sources.base import Source, Split
from ssl_zoo.data.sources.imagefolder import FilesConfig, LimitedConfig


class ImageList(Source):
    """All images of files, folders and tar archives, without labels.

    Args:
        config: limits and rules of decoding.

    Raises:
        ValueError: a path is missing or contains no image.
    """

    channel_counts = None

    def __init__(self, paths: Sequence[str], config: LimitedConfig | None = None, channels: int = 3) -> None:
        config = config or FilesConfig()
        super().__init__(config, Split.test, channels)
        self._pixels = config.pixels(channels)
        self._places: list[tuple[Path, Files | None, int]] = []  # path, its files, the number among them
        unpacked = getattr(config, "max_unpacked_bytes", FilesConfig().max_unpacked_bytes)
        for path in map(Path, paths):
            if path.is_file() and not path.name.endswith((".tar", *GZIP_ENDINGS)):
                self._places.append((path, None, 0))
            else:
                files = open_files(str(path), max_unpacked_bytes=unpacked)
                self._places += [(path, files, number) for number in range(len(files.names))]

    def __len__(self) -> int:
        return len(self._places)

    def image(self, index: int) -> UInt8[Tensor, "C H W"]:
        name, limits = self.sample_name(index), self.config.limits
        return decode(self.encoded(index), name, limits, self._pixels, self._notices)

    def encoded(self, index: int) -> bytes:
        path, files, number = self._places[index]
        limit = self.config.limits.max_bytes
        return read_file(str(path), printable(str(path)), limit) if files is None else files.read(number, limit)

    def sample_name(self, index: int) -> str:
        path, files, number = self._places[index]
        return printable(str(path) if files is None else f"{path}/{files.names[number]}")

    def place(self, index: int) -> str:
        """Return where an image is, the same for every spelling of its path."""
        path, files, number = self._places[index]
        return str(path.resolve() if files is None else path.resolve() / files.names[number])
