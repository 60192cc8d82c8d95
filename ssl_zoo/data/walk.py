"""The walk through a folder of images, by the entries of its directories alone."""

import heapq
import os
import stat
from pathlib import Path

from ssl_zoo.data.listing import READ_AS, Listing, Reason, ending_of, is_output
from ssl_zoo.data.names import is_hidden

_RUN_FOLDERS = {"checkpoints", "figures", "wandb", "eval", "export"}  # of a run directory


def list_folder(root: Path) -> tuple[list[str], Listing]:
    """List the images below a folder, by the entries of its folders alone: no file is opened.

    Links are followed, but every real folder is read once. The root itself is read even if it is hidden or the
    directory of a run; of the latter, the folders that the run has written are left out.

    Returns:
        Paths relative to the root.

    Raises:
        OSError: the root itself can't be read.
    """
    names: list[str] = []
    listing = Listing()
    visited: set[str] = set()
    # Links come last and in order, so that a real folder keeps its name where links lead to it as well.
    folders: list[tuple[str, str]] = [("", os.path.realpath(root))]
    links: list[tuple[str, str]] = []
    while folders or links:
        is_link = not folders
        prefix, place = heapq.heappop(links) if is_link else folders.pop()
        if place in visited:
            if is_link:  # the folders in it have been counted where they were read
                listing.leave_out(Reason.known_folder, prefix[:-1])
            continue
        visited.add(place)
        entries = _entries(place, prefix, listing)
        if entries is None:
            continue
        if is_output({entry.name for entry in entries}):
            if prefix:
                listing.leave_out(Reason.run, prefix[:-1])
                continue
            entries = [entry for entry in entries if not _is_output_of_root(entry, listing)]
        if not entries and prefix and ending_of(prefix[:-1]) in READ_AS:
            listing.leave_out(Reason.empty_folder, prefix[:-1])
        names += [prefix + entry.name for entry in entries if _is_used(entry, prefix, place, listing, folders, links)]
    return names, listing


def _is_used(
    entry: os.DirEntry,
    prefix: str,
    place: str,
    listing: Listing,
    folders: list[tuple[str, str]],
    links: list[tuple[str, str]],
) -> bool:
    """Return whether an entry is an image; count it, or append the folder or link to what is visited later."""
    name, is_file = entry.name, entry.is_file(follow_symlinks=False)
    if is_file and not is_hidden(name):  # nearly all entries of a large data set
        return listing.is_image(prefix + name)
    kind = "file" if is_file else _kind(entry)
    if is_hidden(name):
        listing.leave_out(Reason.hidden_folder if kind == "folder" else Reason.hidden_file, prefix + name)
    elif kind == "folder" and entry.is_symlink():
        heapq.heappush(links, (f"{prefix}{name}/", os.path.realpath(f"{place}/{name}")))
    elif kind == "folder":
        folders.append((f"{prefix}{name}/", f"{place}/{name}"))
    elif kind == "file":
        return listing.is_image(prefix + name)
    else:
        listing.leave_out(kind, prefix + name)
    return False


def _entries(place: str, prefix: str, listing: Listing) -> list[os.DirEntry] | None:
    try:
        with os.scandir(place) as entries:
            return list(entries)
    except OSError as error:
        if not prefix:
            raise
        listing.leave_out(Reason.unreadable_folder, f"{prefix[:-1]} ({error.strerror})")
        return None


def _kind(entry: os.DirEntry) -> str | Reason:
    """Return ``folder``, ``file`` for a link to one, or the reason to leave out what is no regular file.

    Only links cost a system call.
    """
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    try:
        mode = entry.stat().st_mode
    except OSError:  # the target is missing, can't be reached, or is a link to itself
        return Reason.broken_link
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else Reason.special


def _is_output_of_root(entry: os.DirEntry, listing: Listing) -> bool:
    """Leave out what a run has written whose ``output_dir`` is the root itself."""
    if entry.name not in _RUN_FOLDERS or not entry.is_dir(follow_symlinks=False):
        return False
    listing.leave_out(Reason.run, entry.name)
    return True
