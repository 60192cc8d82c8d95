"""The table of refused images in docs/reliability.md has every reason, and reasons name the key that decides."""

import re
from pathlib import Path

import pytest

from ssl_zoo.data.corrupt import CorruptImage, DecodeLimits, Refusal, WrongChannels
from ssl_zoo.data.decode import decode

PAGE = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
[TABLE] = re.findall(r"^## Refused images\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
ROWS = dict(re.findall(r"^\| `(.+?)` \| (.+) \|$", TABLE, re.MULTILINE))


def test_the_table_has_every_reason_and_a_remedy_for_it():
    assert set(ROWS) == {re.sub(r"{\w+}", "...", refusal.value) for refusal in Refusal}
    assert all(len(remedy) > 20 for remedy in ROWS.values())


def test_reasons_of_a_limit_name_its_key():
    keys = {"limit": "data.", "channels": "backbone.in_channels="}
    for refusal in Refusal:
        for value, key in keys.items():
            assert f"{{{value}}}" not in refusal.value or key in refusal.value


def test_no_decoder_words_a_reason_of_its_own():
    folder = Path(__file__).parents[2] / "ssl_zoo" / "data"
    for path in folder.rglob("*.py"):
        assert not re.search(r"raise (CorruptImage|WrongChannels)\(", path.read_text()), path


def test_an_image_is_never_refused_by_a_raw_error():
    limits = DecodeLimits(max_bytes=10**6, max_pixels=10**6, min_side=1)
    for start in (
        b"II*\0\x08\0\0\0",
        b"MM\0*\0\0\0\x08",
        b"P5 9 9 999 ",
        b"P3 2 2 999 x y",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
    ):
        for rest in (b"", b"\0" * 40, b"\xff" * 40, bytes(range(64))):
            with pytest.raises(CorruptImage):
                decode(start + rest, "a", limits)


def test_a_refusal_survives_the_way_out_of_a_worker():
    import pickle

    error = Refusal.wrong_channels.of("a", found="an RGB image", channels=4)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is WrongChannels and str(copy) == str(error)
