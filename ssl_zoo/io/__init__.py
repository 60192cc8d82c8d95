"""Files: the path manager, downloads, atomic writes, locks."""

from ssl_zoo.io.files import flush_to_disk, fsync_path, publish_directory, try_lock, write_atomic
from ssl_zoo.io.paths import PATHS, Paths
from ssl_zoo.io.web import DownloadError, WebHandler
