"""Figures of what an encoder has learned, and a page that shows them."""

from ssl_zoo.visualization.attention import plot_attention
from ssl_zoo.visualization.components import plot_components
from ssl_zoo.visualization.gallery import Gallery
from ssl_zoo.visualization.neighbours import Bank, plot_neighbours
from ssl_zoo.visualization.similarity import patch_similarities, plot_similarity
from ssl_zoo.visualization.subject import Rendering, Subject, choose_images
