import math

import pytest
import torch
from tiny_maps import COLORS, Mosaic

from ssl_zoo.data.batch import ViewConfig, ViewSpec
from ssl_zoo.data.dense import DenseData, Pairs
from ssl_zoo.data.evaluation import EvaluationData
from ssl_zoo.data.maps import IGNORED, crop_maps
from ssl_zoo.data.raycast import CAMERA_HEIGHT, FOCAL, Scenes, render, render_with_geometry
from ssl_zoo.data.shapes import BOX, CONE, CYLINDER, HALF_HEIGHT, SPHERE
from ssl_zoo.data.sources import SOURCES, Split
from ssl_zoo.data.sources.base import GreySource, SourceConfig
from ssl_zoo.data.sources.scenes import MAX_DEPTH, PIXEL_CLASSES, ScenesConfig
from ssl_zoo.data.transforms import evaluation_box, evaluation_view, sample_params

PITCH = math.radians(22)


def scene(*objects: tuple[int, float, float]) -> Scenes:
    """One scene of objects (shape, x, z) of size 0.8, turned by 30 degrees."""
    count = len(objects)
    shape, x, z = (torch.tensor([values]) for values in zip(*objects, strict=True))
    each = torch.ones(1, count)
    yaw = torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]).expand(1, count, 2)
    grey = torch.full((1, 3), 0.5)
    return Scenes(
        count=torch.tensor([count]),
        ground=torch.stack([x.float(), z.float()], dim=-1),
        size=0.8 * each,
        shape=shape,
        yaw=yaw,
        color=each[..., None] * grey,
        gloss=0.1 * each,
        light=torch.tensor([[0.0, 1.0, 0.0]]),
        light_color=2 * grey,
        floor=grey,
        wall=grey,
        fields=torch.zeros(1, 5),
    )


def test_depth_is_that_of_a_sphere_in_front_of_the_ground_solved_in_float64():
    size, radius, center = 40, 0.8, (0.5, 0.8 - CAMERA_HEIGHT, 7.0)
    depth = render_with_geometry(scene((SPHERE, 0.5, 7.0)), size)[1].depth[0]
    forward, up = (0, -math.sin(PITCH), math.cos(PITCH)), (0, math.cos(PITCH), math.sin(PITCH))
    differences, num_hits = [], 0
    for row in range(size):
        for column in range(size):
            u, v = (2 * column + 1) / size - 1, 1 - (2 * row + 1) / size
            ray = [FOCAL * f + v * w + u * (axis == 0) for axis, (f, w) in enumerate(zip(forward, up, strict=True))]
            square, along = sum(r * r for r in ray), sum(r * c for r, c in zip(ray, center, strict=True))
            root = along**2 - square * (sum(c * c for c in center) - radius**2)
            if root > 0:
                steps = (along - math.sqrt(root)) / square
            else:
                steps = CAMERA_HEIGHT / -ray[1] if ray[1] < -0.05 else math.nan  # near the horizon the rim is a choice
            num_hits += root > 0
            if math.isfinite(steps):
                differences.append(
                    abs(depth[row, column].item() - FOCAL * steps)
                )  # the axis is FOCAL image planes long
    assert num_hits > 20 and len(differences) > 1200
    assert max(differences) < 2e-3


@pytest.mark.parametrize("shape", [SPHERE, BOX, CYLINDER, CONE])
def test_positions_lie_on_the_surface_of_the_object_or_on_the_ground(shape):
    scenes = scene((shape, -0.6, 6.0))
    geometry = render_with_geometry(scenes, 64)[1]
    on_object, positions = geometry.instance[0] == 1, geometry.positions()[0]
    x, y, z = positions[:, on_object] - scenes.centers()[0, 0][:, None]
    half = HALF_HEIGHT[shape] * 0.8
    turned = (0.75**0.5 * x + 0.5 * z).abs(), y.abs(), (0.75**0.5 * z - 0.5 * x).abs()
    radial = (x * x + z * z).sqrt()
    distance = {
        SPHERE: (x * x + y * y + z * z).sqrt() - half,
        BOX: torch.stack(turned).amax(dim=0) - half,
        CYLINDER: torch.maximum(radial - 0.85 * 0.8, y.abs() - half),
        CONE: radial - 0.5 * (half - y),
    }[shape]
    assert on_object.sum() > 30 and distance.abs().max() < 1e-4
    ground = (geometry.instance[0] == 0) & geometry.depth[0].isfinite()
    assert torch.allclose(positions[1, ground], torch.tensor(-CAMERA_HEIGHT), rtol=1e-4)


def test_a_nearer_object_hides_a_farther_one_behind_it():
    far, near = (BOX, 0.0, 9.0), (SPHERE, 0.0, 5.0)
    alone, both = (render_with_geometry(scene(*objects), 64)[1] for objects in ([far], [far, near]))
    covered = both.instance[0] == 2
    assert (both.depth[0][covered] < 6).all() and (both.depth[0] <= alone.depth[0] + 1e-6).all()
    assert (both.instance[0][(alone.instance[0] == 1) & ~covered] == 1).all()


def test_patches_count_the_objects_that_they_show():
    geometry = render_with_geometry(scene((SPHERE, -1.0, 5.0), (CONE, 1.0, 6.0), (BOX, 0.2, 7.0)), 48)[1]
    expected = [
        [len(set(geometry.instance[0, r : r + 8, c : c + 8].flatten().tolist()) - {0}) for c in range(0, 48, 8)]
        for r in range(0, 48, 8)
    ]
    assert geometry.objects_per_patch(8)[0].tolist() == expected and max(map(max, expected)) >= 1


def test_images_with_maps_are_bit_equal_to_those_without():
    source, index = SOURCES.build(ScenesConfig(image_size=32, num_train=80), Split.train), torch.arange(80)
    images, depth = source.images_and_maps(index, "depth")
    again, classes = source.images_and_maps(index, "segmentation")
    assert torch.equal(images, source.images(index)) and torch.equal(again, images)
    assert torch.equal(images, render(source.scenes(index), 32))
    assert torch.equal(source.image_and_map(7, "depth")[1], depth[7])
    assert depth[depth > 0].min() > 0 and depth.max() <= MAX_DEPTH and (classes < len(PIXEL_CLASSES)).all()
    grey, same = GreySource(source).images_and_maps(index[:3], "depth")
    assert grey.shape == (3, 1, 32, 32) and torch.equal(same, depth[:3])


def test_pixel_classes_are_the_shapes_of_the_visible_objects():
    source, index = SOURCES.build(ScenesConfig(image_size=32, num_train=30), Split.train), torch.arange(30)
    instance = source.geometry(index).instance
    classes, scenes = source.images_and_maps(index, "segmentation")[1], source.scenes(index)
    for image in range(30):
        for number in range(1, int(scenes.count[image]) + 1):
            assert (classes[image][instance[image] == number] == scenes.shape[image, number - 1] + 2).all()
    assert classes[:, 0].max() == 0 and (classes[:, -1] > 0).all()  # the wall is above, the ground below


def dense(source, batches, size=(16, 16), view=None, params=None, name="segmentation") -> list:
    data = EvaluationData(source, size=size, mean=[0.0] * 3, std=[1 / 255] * 3)
    return list(DenseData(data, Pairs(source, name), batches, view=view, params=params))


def test_maps_flip_with_their_images():
    source, index = Mosaic(SourceConfig(), Split.train), torch.arange(6)
    view = ViewSpec("image", (16, 16), ViewConfig(horizontal_flip=1.0))
    params = sample_params(view.config, 6, torch.Generator().manual_seed(0))
    [plain], [flipped] = dense(source, [index]), dense(source, [index], view=view, params=[params])
    assert torch.equal(flipped.images, plain.images.flip(3)) and torch.equal(flipped.maps, plain.maps.flip(2))
    assert not torch.equal(flipped.maps, plain.maps)


def test_maps_are_cropped_with_their_images():
    source, index = Mosaic(SourceConfig(), Split.train), torch.arange(20)
    view = ViewSpec("image", (24, 24), ViewConfig(crop_scale=[0.3, 0.6], horizontal_flip=0.5))
    params = sample_params(view.config, 20, torch.Generator().manual_seed(0))
    [batch] = dense(source, [index], size=(24, 24), view=view, params=[params])
    distance = (batch.images[:, None] - COLORS.float()[None, :, :, None, None]).square().sum(dim=2)
    shown, known = distance.argmin(dim=1), batch.maps != IGNORED
    is_clear = distance.amin(dim=1) < 100  # no mixture of two patches
    assert (is_clear & known).float().mean() > 0.4
    assert (shown == batch.maps)[is_clear & known].all()


def test_without_augmentation_images_are_what_evaluators_see_and_maps_are_cropped_alike():
    image = torch.arange(60 * 80).view(60, 80).remainder(251).to(torch.uint8)
    box = evaluation_box(60, 80, (30, 30))
    [cropped] = crop_maps([image], torch.tensor([box]), torch.tensor([False]), (30, 30))
    top, left, height, width = box
    centers = [(2 * i + 1) * height // 60 for i in range(30)]
    assert (height, width) == (52, 52) and evaluation_view(image.expand(3, -1, -1), (30, 30)).shape == (3, 30, 30)
    assert torch.equal(cropped, image[top:, left:][centers][:, centers])


def test_a_batch_of_no_decodable_image_is_one_black_image_of_unknown_pixels():
    source = Mosaic(SourceConfig(), Split.test, corrupt=(1, 3))
    first, second, third = dense(source, [torch.tensor([0, 1]), torch.tensor([3]), torch.tensor([], dtype=torch.long)])
    assert [first.num_images, second.num_images, third.num_images] == [1, 0, 0]
    for batch in (second, third):
        assert batch.images.shape == (1, 3, 16, 16) and (batch.maps == IGNORED).all()
    [depth] = dense(source, [torch.tensor([3])], name="depth")
    assert (depth.maps == 0).all() and depth.maps.dtype == torch.float32
