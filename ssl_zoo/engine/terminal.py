"""Log lines as a terminal and as a file should have them."""

import logging

from rich.console import Console
from rich.logging import RichHandler


def log_handler(console: Console) -> logging.Handler:
    """Return a handler that wraps and colours lines on a terminal, and writes one line per message elsewhere."""
    if console.is_terminal:
        return RichHandler(console=console, show_path=False)
    handler = logging.StreamHandler(console.file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    return handler
