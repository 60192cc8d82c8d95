"""PCA maps: patch features in the colours of their principal components."""

from ssl_zoo.nn import ViT
from ssl_zoo.plotting import Column, Figure, PrincipalColours, Ramp, map_colours, patch_colours
from ssl_zoo.visualization.subject import Subject

_NOTE = (
    "A feature is a vector. The principal components are the directions in which the features of all patches of all "
    "images shown differ most; the first three are red, green and blue, and each has a column of its own. Like colours "
    "are like features, across images too."
)


def plot_components(subject: Subject, initial: ViT | None = None) -> Figure:
    """Return a figure of the first three principal components of the patch features, together and one by one.

    Args:
        initial: the same network before its training, for a further column with components of its own.
    """
    size, grid, features = subject.rendering.size, subject.grid, subject.patch_features()
    principal = PrincipalColours.of(features)
    colours = principal(features)
    columns = [Column("image", subject.pixels), Column("three components", patch_colours(colours, grid, size))]
    for number, fraction in enumerate(principal.explained.tolist()):
        component = patch_colours(map_colours(colours[..., number]), grid, size)
        columns.append(Column(f"component {number + 1}, {fraction:.0%} of the variance", component))
    note = _NOTE
    if initial is not None:
        untrained = subject.patch_features(initial)
        shown = patch_colours(PrincipalColours.of(untrained)(untrained), grid, size)
        columns.append(Column("three components, before training", shown))
        note += " The last column is the same network with random weights: what is seen there was not learned."
    title = "PCA of patch features: which patches the encoder represents alike"
    return Figure(title, columns, [Ramp("a single component", "its lowest values", "its highest")], note)
