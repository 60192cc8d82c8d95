"""See what a method does and what its encoder has learned: ``python tools/visualize.py --run DIR [--gallery DIR]``.

The source is a run (``--run``) or a folder of exported or imported weights (``--weights``); the images are those of
``--images``, or held-out ones of the run. Each figure becomes a PNG file with a title, a legend and the name of every
image, or with ``--gallery`` a section of a page that opens in a browser without a server. Figures:

  method        what the method itself shows: masks, reconstructions, features or crops
  pca           patch features in the colours of their principal components
  attention     what class token, average patch or --patch attend to, by --layers and --heads
  neighbours    the --num-neighbours nearest images in --neighbours-in, or in the run's training images
  similarity    similarity of --patch to all others; in a gallery of any patch that is clicked
  decoded       samples of what the predictor expects in a target block, by the decoder of tools/train_decoder.py
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

if __package__ in (None, ""):  # run as a file of a checkout, whose packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from ssl_zoo.api.opening import Opened, open_trained_run, open_weights_folder
from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.image_list import ImageList
from ssl_zoo.data.listing import OUTPUT_MARK
from ssl_zoo.data.sources import SOURCES, Source, Splits, build_splits
from ssl_zoo.data.sources.imagefolder import LimitedConfig
from ssl_zoo.decoding.show import decoded
from ssl_zoo.engine.device import autocast
from ssl_zoo.engine.settings import Precision
from ssl_zoo.engine.visualize import draw_all, save_images, visualize
from ssl_zoo.eval.knn import KNNConfig
from ssl_zoo.eval.split import subset
from ssl_zoo.io import write_atomic
from ssl_zoo.machine import refuse_windows
from ssl_zoo.plotting import Figure
from ssl_zoo.plugins import discover
from ssl_zoo.visualization import (
    Bank,
    Gallery,
    Rendering,
    Subject,
    choose_images,
    plot_attention,
    plot_components,
    plot_neighbours,
    plot_similarity,
)

METHOD = "method"  # all figures of the method
DECODED = "decoded"  # what a decoder of tools/train_decoder.py samples
NEED_NO_WEIGHTS = ("masks", "crops")  # figures of a method that show no prediction


@dataclass(frozen=True)
class Session:
    """What the figures of one call share."""

    opened: Opened
    arguments: argparse.Namespace

    @cached_property
    def splits(self) -> Splits:
        return build_splits(self.opened.config.data, self.opened.preprocessing.channels)

    @cached_property
    def subject(self) -> Subject:
        opened, count = self.opened, self.arguments.num_images
        source = self.listed(self.arguments.images) if self.arguments.images else self._held_out()
        samples, images = choose_images(source, count, must_decode=bool(self.arguments.images))
        preprocessing = opened.preprocessing
        rendering = Rendering(tuple(preprocessing.size), preprocessing.mean, preprocessing.std)
        precision = autocast(opened.trained.precision or Precision.fp32, torch.device("cpu"))
        return Subject(opened.encoder, rendering, source, samples, images, torch.device("cpu"), precision)

    def listed(self, paths: Sequence[str]) -> ImageList:
        """Open images of the user's own, with the limits and rules of the run's data where it has any."""
        data = self.opened.config.data
        settings = data if isinstance(data, LimitedConfig) else None
        return ImageList(paths, settings, self.opened.preprocessing.channels)

    def _held_out(self) -> Source:
        if self.splits.test is None:
            print(f"training images, since there is no test image: {self.splits.without_test}", file=sys.stderr)
            return self.splits.train
        return self.splits.test


def _pca(session: Session) -> Figure:
    return plot_components(session.subject, session.opened.initial_encoder())


def _attention(session: Session) -> Figure:
    chosen = session.arguments
    return plot_attention(session.subject, layers=chosen.layers, heads=chosen.heads, patch=chosen.patch)


def _neighbours(session: Session) -> Figure:
    opened, chosen = session.opened, session.arguments
    if chosen.neighbours_in:
        source = session.listed(chosen.neighbours_in)
        bank = Bank(source, torch.arange(len(source)), " and ".join(chosen.neighbours_in))
    else:
        train, probe = session.splits.train, opened.config.probe
        name = f"training images of {SOURCES.name_of(opened.config.data)}"
        bank = Bank(train, subset(len(train), probe.train_samples, opened.config.seed, "train"), name)
    config = opened.config.probe.evaluator_config("knn")
    config = KNNConfig(pooling=opened.pooling) if opened.pooling is not None else config
    return plot_neighbours(session.subject, bank, config, chosen.num_neighbours)


def _similarity(session: Session) -> Figure:
    return plot_similarity(session.subject, session.arguments.patch)


def _decoded(session: Session) -> Figure:
    opened = session.opened
    if opened.origin.run is None:
        raise ValueError("decoders belong to runs, and this is a folder of weights; give --run")
    seed = session.arguments.seed
    return decoded(opened.origin.run, opened.trained, opened.config, session.subject.images, seed=seed)


# Another figure is one more entry: a function of a module of its own.
FIGURES: Mapping[str, Callable[[Session], Figure]] = {
    "pca": _pca,
    "attention": _attention,
    "neighbours": _neighbours,
    "similarity": _similarity,
    DECODED: _decoded,
}


def method_figures(session: Session) -> Mapping[str, Figure]:
    """Return the figures of the method; predictions by a network without trained weights are left out and named."""
    opened = session.opened
    figures = visualize(opened.trained, opened.config, session.subject.images, seed=session.arguments.seed)
    if not opened.fresh:
        return figures
    left_out = [name for name in figures if name not in NEED_NO_WEIGHTS]
    if left_out:
        print(
            f"left out: {', '.join(left_out)}, since {', '.join(opened.fresh)} of the method have no weights in "
            f"{opened.origin.path.parent}",
            file=sys.stderr,
        )
    return {name: figure for name, figure in figures.items() if name not in left_out}


def make_figures(session: Session, wanted: Sequence[str]) -> dict[str, Figure]:
    """Return the wanted figures by name, in the order in which they are wanted.

    Raises:
        ValueError: a name that is neither among ``FIGURES`` nor a figure of the method.
    """
    figures: dict[str, Figure] = {}
    own = method_figures(session) if set(wanted) - set(FIGURES) else {}
    for name in wanted:
        if name == METHOD:
            figures |= own
        elif name in FIGURES:
            figures[name] = FIGURES[name](session)
        elif name in own:
            figures[name] = own[name]
        else:
            known = ", ".join([METHOD, *own, *FIGURES])
            raise ValueError(f"--figures {name}: there are {known}")
    return figures


def every_figure(session: Session) -> dict[str, Figure]:
    """Return all figures that there are; those that can't be made are left out, and the reasons printed."""
    figures: dict[str, Figure] = {}
    for name in (METHOD, *FIGURES):
        try:
            figures |= make_figures(session, [name])
        except ValueError as error:
            print(f"left out: {name}, since {error}", file=sys.stderr)
    return figures


def write_gallery(session: Session, figures: Mapping[str, Figure], folder: Path) -> Path:
    """Write the page of the figures; the similarity of patches is one that can be clicked."""
    opened, subject = session.opened, session.subject
    config, origin, (height, width) = opened.encoder.config, opened.origin, subject.rendering.size
    rows, columns = subject.grid
    facts = {
        "method": origin.method,
        "weights": str(origin.path if origin.run is None else origin.run),
        "network": origin.network + ("" if origin.step is None else f" after {origin.step:,} training steps"),
        "encoder": f"vision transformer, {config.depth} blocks of width {config.embed_dim}, {config.num_heads} heads",
        "images": f"{height} x {width} pixels, cut into {rows} x {columns} patches of {config.patch_size} pixels",
    }
    gallery = Gallery(f"{origin.method}: what it does and what its encoder has learned", facts, subject.names)
    for name, figure in figures.items():
        if name == "similarity":
            gallery.add_clickable(name, subject)
        else:
            gallery.add(name, figure)
    return gallery.write(folder)


def main(argv: Sequence[str] | None = None) -> int:
    refuse_windows()
    arguments = parse(argv)
    try:
        discover(arguments.plugin)
        if arguments.weights:
            opened = open_weights_folder(arguments.weights, arguments.overrides, arguments.network)
        else:
            opened = open_trained_run(arguments.run, arguments.overrides, arguments.checkpoint, arguments.network)
        session = Session(opened, arguments)
        if arguments.gallery and not arguments.figures:
            figures = every_figure(session)
        else:
            figures = make_figures(session, arguments.figures or [METHOD])
        if arguments.gallery:
            print(write_gallery(session, figures, arguments.gallery))
        if arguments.out or not arguments.gallery:
            for path in write_files(session, figures, arguments.out):
                print(path)
    except (ValueError, LookupError, OSError, CorruptImage) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write_files(session: Session, figures: Mapping[str, Figure], out: Path | None) -> Sequence[Path]:
    """Write a PNG file for each figure; into a folder of the run or of the weights by default."""
    origin = session.opened.origin
    folder = out or (origin.run / "figures" / "visualize" if origin.run else origin.path.parent / "figures")
    if out and not out.exists():
        write_atomic(out / OUTPUT_MARK, "Images made by ssl_zoo; this file keeps them out of data.\n")
    return save_images(draw_all(figures, session.subject.names), folder, origin.step)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, metavar="DIR", help="run directory")
    which.add_argument("--weights", type=Path, metavar="PATH", help="folder of exported or imported weights")
    parser.add_argument("--figures", nargs="+", default=[], metavar="NAME", help="see above; default: method")
    parser.add_argument("--decode", action="store_true", help="the same as --figures decoded")
    parser.add_argument("--gallery", type=Path, metavar="DIR", help="write a page of all figures to DIR/index.html")
    parser.add_argument("--out", type=Path, metavar="DIR", help="PNG files; default: figures/visualize in the run")
    parser.add_argument("--images", nargs="+", default=[], metavar="PATH", help="default: the run's test split")
    parser.add_argument("--num-images", type=int, default=8, help="maximum number of images (default: 8)")
    parser.add_argument("--checkpoint", default="last", help="of --run: last (default), best, or a step number")
    networks = ["evaluated", "encoder", "target_encoder"]
    parser.add_argument("--network", choices=networks, default="evaluated", help="default: as the method decides")
    parser.add_argument("--layers", type=int, nargs="+", default=[-1], help="blocks of attention from 0 (default: -1)")
    parser.add_argument("--heads", type=int, nargs="+", help="heads of attention from 0 (default: all)")
    parser.add_argument("--patch", type=_patch, metavar="ROW,COLUMN", help="the patch of attention and similarity")
    parser.add_argument("--neighbours-in", nargs="+", default=[], metavar="PATH", help="default: the training split")
    parser.add_argument("--num-neighbours", type=int, default=5, help="per image (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the masks and crops (default: 0)")
    parser.add_argument("--plugin", action="append", default=[], help="module or file that registers parts; repeatable")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. backbone.image_size=48 masks=random")
    arguments = parser.parse_intermixed_args(argv)
    arguments.figures += [DECODED] if arguments.decode else []
    for values in (arguments.images, arguments.figures, arguments.neighbours_in):
        words = [word for word in values if "=" in word and not Path(word).exists()]
        arguments.overrides += words  # argparse reads them as further values
        values[:] = [word for word in values if word not in words]
    for name in ("num_images", "num_neighbours"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(arguments, name)}: needs at least 1")
    return arguments


def _patch(text: str) -> tuple[int, int]:
    row, comma, column = text.partition(",")
    if not (comma and row.strip().isdecimal() and column.strip().isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no ROW,COLUMN, counted from 0, such as 3,4")
    return int(row), int(column)


if __name__ == "__main__":
    sys.exit(main())
