"""Names of files and members of archives: escaped for messages, and recognised as hidden."""

import unicodedata

_FOREIGN_TO_DATA = {"__MACOSX", "__pycache__", "@eaDir", "#recycle", "#snapshot", "lost+found"}
_FOREIGN_TO_DATA |= {"$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini"}


def printable(name: str | bytes) -> str:
    """Convert a name to printable text on one line, for messages, logs and reports.

    Bytes that are no UTF-8 become ``\\xe9``, control characters ``\\n``, ``\\t`` or ``\\x1b``.
    """
    if isinstance(name, str):
        if name.isprintable():
            return name
        name = name.encode("utf-8", "surrogateescape")
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def is_hidden(part: str) -> bool:
    """Return whether a file or folder of this name, without its path, belongs to a system or editor and not to data."""
    return part in _FOREIGN_TO_DATA or (part.startswith(".") and part not in (".", ".."))


def normal(name: str) -> str:
    """Return the name in composed Unicode (NFC); file systems write the same name composed or decomposed."""
    return unicodedata.normalize("NFC", name)
