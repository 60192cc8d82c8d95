"""One line about the data of a run: how many images, of which formats, in how many classes, and what is left out."""

import copy
from collections.abc import Sequence

from ssl_zoo.data.listing import Listing
from ssl_zoo.data.sources.base import Source, Splits

_SHOWN_CLASSES, _MAX_SIMILAR = 3, 6


def summary(splits: Splits) -> str:
    """Return ``5,230 images (4,100 JPEG, 1,130 PNG) in 12 classes: 4,707 train, 523 test; left out: 2 (...)``."""
    if splits.parts:
        parts = [f"[{number}] {summary(part)}" for number, part in enumerate(splits.parts)]
        sizes = f"{len(splits.train):,} train and {_num_test(splits):,} test images"
        return f"{sizes} of {len(parts)} parts: {'; '.join(parts)}"
    listing = _joint_listing([source for source in (splits.train, splits.test) if source is not None])
    sizes = f"{len(splits.train):,} train, {f'{_num_test(splits):,}' if splits.test is not None else 'no'} test"
    total = len(splits.train) + _num_test(splits)
    return f"{described(total, listing, splits.train)}: {sizes}{_left_out(listing)}"


def source_summary(source: Source) -> str:
    """Return the same about a source alone."""
    return described(len(source), source.listing, source) + _left_out(source.listing)


def described(total: int, listing: Listing | None, source: Source) -> str:
    formats = f" ({listing.formats_text()})" if listing is not None else ""
    classes = f"in {_count(source.num_classes, 'class', 'classes')}" if source.num_classes else "without labels"
    return f"{_count(total, 'image', 'images')}{formats} {classes}"


def classes_of_one_split(splits: Splits) -> str:
    """Return a sentence about classes that only the train or only the test split has; empty without any."""
    train, test = splits.train, splits.test
    if test is None or not train.classes or train.labels is None or test.labels is None:
        return ""
    in_train, in_test = set(train.labels.unique().tolist()), set(test.labels.unique().tolist())
    parts = []
    for split, missing in (("test", in_train - in_test), ("train", in_test - in_train)):
        if missing:
            names = ", ".join(train.classes[label] for label in sorted(missing)[:_SHOWN_CLASSES])
            more = ", ..." if len(missing) > _SHOWN_CLASSES else ""
            parts.append(f"{len(missing)} of {train.num_classes} classes have no {split} image ({names}{more})")
    return " and ".join(parts)


def similar_classes(source: Source) -> str:
    """Return a sentence about classes whose names differ only in case; empty without any."""
    by_form: dict[str, list[str]] = {}
    for name in source.classes:
        by_form.setdefault(name.casefold(), []).append(name)
    similar = [name for names in by_form.values() if len(names) > 1 for name in names]
    more = ", ..." if len(similar) > _MAX_SIMILAR else ""
    return f"classes that differ only in case: {', '.join(similar[:_MAX_SIMILAR])}{more}" if similar else ""


def _num_test(splits: Splits) -> int:
    return 0 if splits.test is None else len(splits.test)


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _left_out(listing: Listing | None) -> str:
    text = listing.left_out_text() if listing is not None else ""
    return f"; {text}" if text else ""


def _joint_listing(sources: Sequence[Source]) -> Listing | None:
    """Add the listings of both splits, or take the one that they share."""
    listings = {id(source.listing): source.listing for source in sources if source.listing is not None}
    if len(listings) < 2:
        return next(iter(listings.values()), None)
    first, *others = listings.values()
    joint = copy.deepcopy(first)
    for other in others:
        joint.update(other)
    return joint
