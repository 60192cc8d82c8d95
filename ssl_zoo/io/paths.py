"""Paths and addresses: iopath's manager, to which plug-ins add handlers."""

import re

from iopath.common.file_io import PathManager

from ssl_zoo.io.web import WebHandler

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


class Paths(PathManager):
    """iopath's manager, which opens local files and URLs with a handler; plug-ins register more handlers."""

    def is_remote(self, path: str) -> bool:
        """Return whether a handler reads the path, not the local file system.

        Raises:
            ValueError: the path has a scheme without a handler. iopath would open it as a file, and other readers of
                shards would run it as a command.
        """
        scheme = _SCHEME.match(path)
        if scheme is None:
            return False
        prefixes = sorted(filter(None, self._path_handlers))
        if path.startswith(tuple(prefixes)):
            return True
        raise ValueError(
            f"{path}: there is no handler for {scheme[0]}; permitted are local paths, "
            f"{', '.join(prefixes)} and schemes that a plug-in registers by "
            "ssl_zoo.io.PATHS.register_handler"
        )


PATHS = Paths()
PATHS.register_handler(WebHandler())
