"""Listings find every image, and name and count everything else by its reason."""

import io
import os
import tarfile

import pytest

from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.files import open_files
from ssl_zoo.data.listing import OUTPUT_MARK, Reason
from ssl_zoo.data.names import printable
from ssl_zoo.testing.faults.archives import jpeg


def _write(root, *names):
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(jpeg(1))
    return root


def _open(path):
    return open_files(str(path), max_unpacked_bytes=10**9)


def _left_out(files):
    return {reason: sorted(group.names) for reason, group in files.listing.left_out.items()}


RUN = ("config.yaml", "metrics.jsonl", "figures/masks.png")
RULES = {
    "formats by extension in any case": (["a.JPG", "b.jfif", "c.PnG", "d.webp"], {}),
    "images of other formats": (["a.jpg", "b.HEIC", "c.npy"], {Reason.unread: ["b.HEIC", "c.npy"]}),
    "other files": (["a.jpg", "b.txt", "README", "c.jpg~"], {Reason.other: ["README", "b.txt", "c.jpg~"]}),
    "hidden files": (["a.jpg", "._a.jpg", "x/.b.jpg"], {Reason.hidden_file: ["._a.jpg", "x/.b.jpg"]}),
    "dots within names": (["a.1.jpg", "a.2.jpg", "b..jpg"], {}),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_folder_and_its_archives_follow_the_same_rules(tmp_path, rule):
    names, expected = RULES[rule]
    folder = _write(tmp_path / "folder", *names)
    for mode, ending in (("w", "tar"), ("w:gz", "tar.gz")):
        with tarfile.open(tmp_path / f"a.{ending}", mode) as tar:
            for name in names:
                tar.add(folder / name, name)
    for path in (folder, tmp_path / "a.tar", tmp_path / "a.tar.gz"):
        files = _open(path)
        assert _left_out(files) == expected
        assert files.listing.num_images == len(files.names)
        assert len(files.names) + files.listing.num_left_out == len(names)


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_runs_outputs_and_hidden_folders_are_no_data(tmp_path, kind):
    names = ["a/0.jpg", *(f"a/runs/x/{file}" for file in RUN), ".git/b.jpg", "a/.ipynb_checkpoints/0.jpg"]
    names += ["@eaDir/c.jpg", "__MACOSX/d.jpg", f"plots/{OUTPUT_MARK}", "plots/e.png"]
    path = _write(tmp_path / "folder", *names)
    if kind == "tar":
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.add(path, ".")
        path = tmp_path / "a.tar"
    files = _open(path)
    assert [name.removeprefix("./") for name in files.names] == ["a/0.jpg"]
    hidden = [name.removeprefix("./") for name in _left_out(files)[Reason.hidden_folder]]
    assert sorted(hidden) == [".git", "@eaDir", "__MACOSX", "a/.ipynb_checkpoints"]
    if kind == "folder":
        assert _left_out(files)[Reason.run] == ["a/runs/x", "plots"]


@pytest.mark.parametrize("inside", ["runs/x", "runs/x/figures", ".hidden", "x/.git/objects"])
def test_a_path_that_the_user_names_is_data_even_within_a_run_or_hidden_folder(tmp_path, inside):
    _write(tmp_path, *(f"runs/x/{file}" for file in RUN), f"{inside}/0.jpg")
    assert "0.jpg" in _open(tmp_path / inside).names


def test_a_run_whose_directory_is_the_data_does_not_read_its_own_figures(tmp_path):
    _write(tmp_path, "0.jpg", "config.yaml", "metrics.jsonl", "figures/masks.png", "checkpoints/x/y.png")
    files = _open(tmp_path)
    assert files.names == ["0.jpg"] and _left_out(files)[Reason.run] == ["checkpoints", "figures"]


def test_links_pipes_and_devices_are_counted_and_nothing_waits(tmp_path):
    folder = _write(tmp_path / "folder", "a/0.jpg", "a/1.jpg", "b/2.jpg")
    outside = _write(tmp_path / "outside", "3.jpg")
    links = {"a/gone.jpg": "nowhere.jpg", "a/self.jpg": "self.jpg", "a/up": "..", "a/zero.jpg": "/dev/zero"}
    for name, target in {**links, "a/file.jpg": "0.jpg", "0_first": "b", "more": str(outside)}.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "b" / "pipe.jpg")
    files = _open(folder)
    assert files.names == ["a/0.jpg", "a/1.jpg", "a/file.jpg", "b/2.jpg", "more/3.jpg"]
    assert _left_out(files) == {
        Reason.broken_link: ["a/gone.jpg", "a/self.jpg"],
        Reason.known_folder: ["0_first", "a/up"],
        Reason.special: ["a/zero.jpg", "b/pipe.jpg"],
    }


def test_a_file_that_becomes_unreadable_is_a_corrupt_image_and_a_pipe_does_not_block(tmp_path, monkeypatch):
    files = _open(_write(tmp_path, "a.jpg", "b.jpg", "c.jpg"))
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.jpg").unlink()
    os.mkfifo(tmp_path / "b.jpg")
    for position, reason in ((0, "No such file or directory"), (1, "it is no regular file")):
        with pytest.raises(CorruptImage, match=reason):
            files.read(position, 10**6)
    with pytest.raises(CorruptImage, match=r"bytes are more than data\.max_image_bytes=10"):
        files.read(2, 10)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ssl_zoo.data.files.os.open", refuse)
    with pytest.raises(CorruptImage, match=r"c\.jpg: it can't be read: Permission denied"):
        files.read(2, 10**6)


def test_members_of_one_name_links_and_devices_of_an_archive_are_counted(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("a.jpg", jpeg(1)), ("b.jpg", jpeg(2)), ("a.jpg", jpeg(3))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, kind in (("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE), ("p.jpg", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.jpg"
            tar.addfile(member)
    files = _open(tmp_path / "a.tar")
    assert files.names == ["a.jpg", "b.jpg"] and files.read(0, 10**6) == jpeg(3)
    assert _left_out(files) == {
        Reason.replaced: ["a.jpg"],
        Reason.archive_link: ["h.jpg", "l.jpg"],
        Reason.special: ["p.jpg"],
    }


def test_a_folder_without_images_says_what_there_is_instead(tmp_path):
    _write(tmp_path, "scan.dcm", "notes.txt", "photo")
    with pytest.raises(ValueError, match=r"contains no image file .*1 image of another format \(1 \.dcm\): scan\.dcm"):
        _open(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.jpg", "plain.jpg"),
        ("café 日本.jpg", "café 日本.jpg"),
        ("caf\udce9.jpg", r"caf\xe9.jpg"),
        ("a\nb\tc.jpg", r"a\nb\tc.jpg"),
        ("\x1b[31mred.jpg", r"\x1b[31mred.jpg"),
        (b"caf\xe9\n.jpg", r"caf\xe9\n.jpg"),
    ],
)
def test_names_are_printed_on_one_line_without_control_characters(name, text):
    assert printable(name) == text
