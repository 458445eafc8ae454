"""The truth that the drawn world tells about a picture, compared with its pixels."""

import dataclasses
import hashlib
import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ray_reid.miniature import (
    CAMERAS,
    VIEWS,
    draw,
    draw_scene,
    pedestrian_identities,
    vehicle_identities,
)
from ray_reid.miniature.cameras import SHOWROOM, STREET
from ray_reid.miniature.chance import generator
from ray_reid.miniature.drawing import Arrangement, arrange, view_name
from ray_reid.miniature.paint import CLOTHES_PARTS
from ray_reid.miniature.pedestrians import Pedestrian
from ray_reid.miniature.staging import Traced, extent, project, trace
from ray_reid.miniature.vehicle_models import MODELS, VEHICLE_COLOURS, VehicleModel
from ray_reid.miniature.vehicles import Marks, Vehicle

PORTRAIT = (64, 32)
NO_MARKS = Marks(0, 0, 0, 0, 0, 0, 0)


def render(setting: Arrangement, size: tuple[int, int], shadows: bool = True) -> Traced:
    return trace(setting.objects, setting.lens, setting.camera, setting.offsets, size, shadows)


def in_studio(vehicle: Vehicle, **changes: object) -> np.ndarray:
    changed = dataclasses.replace(vehicle, **changes)
    setting = arrange(changed, SHOWROOM, generator("test"), (64, 64), view="front-left")
    return render(setting, (64, 64)).light


@pytest.mark.parametrize("camera", CAMERAS)
def test_box_bounds_exactly_the_pixels_that_the_object_changes(camera: str) -> None:
    for subject, size in [
        *((vehicle, (48, 64)) for vehicle in vehicle_identities(4, 1)),
        *((person, PORTRAIT) for person in pedestrian_identities(4, 1)),
    ]:
        drawing = draw(subject, domain="street", camera=camera, index=5, size=size)
        kind = type(subject).__name__
        rng = generator("draw", kind, subject.name, "street", camera, 5, 0)
        setting = arrange(subject, STREET[camera], rng, size)
        # The object's shadow is not the object, so the sun must not cast any.
        with_it = render(setting, size, shadows=False)
        far_away = setting.objects[0]._replace(x=-1e4)
        without = dataclasses.replace(setting, objects=(far_away, *setting.objects[1:]))
        changed = (with_it.light != render(without, size, shadows=False).light).any(axis=2)
        assert drawing.box == extent(changed)


def test_occluded_parts_are_outside_the_box_and_the_mask() -> None:
    person = pedestrian_identities(1, 0)[0]
    setting = arrange(person, STREET["c1"], generator("test"), PORTRAIT)
    screen = setting.objects[0]._replace(x=-1.5)
    hidden = dataclasses.replace(setting, objects=(setting.objects[0], screen))
    free, covered = render(setting, PORTRAIT), render(hidden, PORTRAIT)
    assert (covered.owners == 0).sum() < 0.7 * (free.owners == 0).sum()
    assert not ((covered.owners == 0) & (free.owners != 0)).any()


@pytest.mark.parametrize("outfit", [0, 1, 2])
def test_clothes_mask_covers_exactly_the_pixels_that_other_clothes_change(outfit: int) -> None:
    for person in pedestrian_identities(8, 0):
        for camera in ("c1", "c4", "c6"):
            drawing = draw(person, domain="street", camera=camera, size=PORTRAIT, outfit=outfit)
            rng = generator("draw", "Pedestrian", person.name, "street", camera, 0, 0)
            setting = arrange(person, STREET[camera], rng, PORTRAIT, outfit)
            solids = setting.objects[0].solids
            dyed = solids.material.copy()
            dyed[np.isin(solids.part, CLOTHES_PARTS), :3] *= 0.5
            dyed_thing = setting.objects[0]._replace(solids=solids._replace(material=dyed))
            other = dataclasses.replace(setting, objects=(dyed_thing, *setting.objects[1:]))
            changed = (render(setting, PORTRAIT).light != render(other, PORTRAIT).light).any(axis=2)
            assert drawing.clothes_mask is not None
            np.testing.assert_array_equal(drawing.clothes_mask, changed)
            assert changed.sum() > 40


def test_parts_of_a_pedestrian_lie_inside_its_box() -> None:
    person = pedestrian_identities(1, 0)[0]
    drawing = draw(person, domain="showroom", size=(128, 64), view="front")
    assert drawing.parts is not None
    left, top, right, bottom = drawing.box
    outside = np.ones_like(drawing.parts, dtype=bool)
    outside[top:bottom, left:right] = False
    assert not drawing.parts[outside].any()
    # Head on top, shoes below.
    order = [np.flatnonzero((drawing.parts == part).any(axis=1)).mean() for part in (3, 4, 5, 6)]
    assert order == sorted(order)


def test_equal_arguments_give_equal_bytes_in_another_process() -> None:
    program = (
        "import hashlib\n"
        "from ray_reid.miniature import draw, pedestrian_identities, vehicle_identities\n"
        "vehicle, person = vehicle_identities(3, 7)[2], pedestrian_identities(3, 7)[2]\n"
        "one = draw(vehicle, domain='street', camera='c2', index=4, seed=9)\n"
        "two = draw(person, domain='street', camera='c3', index=1, size=(64, 32), outfit=1)\n"
        "print(hashlib.sha256(one.encoded + two.encoded).hexdigest())\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.strip()
    vehicle, person = vehicle_identities(3, 7)[2], pedestrian_identities(3, 7)[2]
    # Pictures drawn in between must not matter.
    draw(vehicle, domain="showroom")
    two = draw(person, domain="street", camera="c3", index=1, size=PORTRAIT, outfit=1)
    one = draw(vehicle, domain="street", camera="c2", index=4, seed=9)
    assert hashlib.sha256(one.encoded + two.encoded).hexdigest() == said


def test_encoded_is_a_jpeg_of_the_image() -> None:
    drawing = draw(vehicle_identities(1, 0)[0], domain="showroom", size=(48, 80))
    opened = Image.open(io.BytesIO(drawing.encoded))
    assert (opened.format, opened.size) == ("JPEG", (80, 48))
    gap = np.abs(np.asarray(opened).astype(float) - drawing.image)
    assert gap.mean() < 4.0


@pytest.mark.parametrize("view", VIEWS)
def test_vehicles_that_share_every_prompt_attribute_differ_in_pixels(view: str) -> None:
    vehicles = vehicle_identities(24, 0)
    for number in range(0, 24, 4):
        first, second = vehicles[number], vehicles[number + 1]
        assert first.attributes == second.attributes
        # The same pose, frame and paint leave the marks alone to tell.
        second = dataclasses.replace(second, shade=first.shade)
        pictures = []
        setting = arrange(first, SHOWROOM, generator("test"), (64, 64), view=view)
        for vehicle in (first, second):
            other = arrange(vehicle, SHOWROOM, generator("test"), (64, 64), view=view)
            pictures.append(render(dataclasses.replace(other, lens=setting.lens), (64, 64)).light)
        gap = np.abs(np.sqrt(pictures[0]) - np.sqrt(pictures[1])).max(axis=2)
        assert (gap > 0.1).sum() >= 12


def lit(vehicle: Vehicle, view: str) -> np.ndarray:
    plain = arrange(
        dataclasses.replace(vehicle, marks=NO_MARKS), SHOWROOM, generator("t"), (64, 64), view=view
    )
    marked = arrange(vehicle, SHOWROOM, generator("t"), (64, 64), view=view)
    return np.sqrt(render(dataclasses.replace(marked, lens=plain.lens), (64, 64)).light)


@pytest.mark.parametrize("model", MODELS[::2], ids=lambda model: model.body_style)
def test_every_mark_is_visible_on_every_body_style(model: VehicleModel) -> None:
    vehicle = dataclasses.replace(vehicle_identities(1, 0)[0], model=model, colour="silver")
    views = ("front-left", "rear-right")
    plain = {view: lit(dataclasses.replace(vehicle, marks=NO_MARKS), view) for view in views}
    for field in dataclasses.fields(Marks):
        for value in range(1, 7):
            marks = dataclasses.replace(NO_MARKS, **{field.name: value})
            marked = dataclasses.replace(vehicle, marks=marks)
            gaps = [np.abs(lit(marked, view) - plain[view]).max(axis=2) for view in views]
            assert max((gap > 0.05).sum() for gap in gaps) >= 4, (field.name, value)


@pytest.mark.parametrize("colour", VEHICLE_COLOURS)
def test_decals_stand_out_from_paint_of_every_colour(colour: str) -> None:
    vehicle = dataclasses.replace(vehicle_identities(1, 0)[0], model=MODELS[2], colour=colour)
    plain = lit(dataclasses.replace(vehicle, marks=NO_MARKS), "front-left")
    for name in ("roof", "stripe", "sticker"):
        seen = [plain]
        for value in range(1, 7):
            marks = dataclasses.replace(NO_MARKS, **{name: value})
            seen.append(lit(dataclasses.replace(vehicle, marks=marks), "front-left"))
        for one, two in itertools.combinations(range(7), 2):
            gap = np.abs(seen[one] - seen[two]).max(axis=2)
            assert (gap > 0.08).sum() >= 4, (name, one, two)


def test_view_names_the_side_that_faces_the_camera() -> None:
    assert [view_name(45.0 * step) for step in range(8)] == list(VIEWS)
    assert view_name(359.0) == "front"
    # Metres in the object's frame: a point ahead of, and one to the left of, its middle.
    expected = {"front": (0, 1), "left": (-1, 0), "rear": (0, -1), "right": (1, 0)}
    vehicle = vehicle_identities(1, 0)[0]
    for view, (ahead, leftwards) in expected.items():
        setting = arrange(vehicle, SHOWROOM, generator("test"), (64, 64), view=view)
        yaw = setting.objects[0].yaw
        points = np.array([[np.cos(yaw), np.sin(yaw), 0.5], [-np.sin(yaw), np.cos(yaw), 0.5]])
        flat, _ = project(points, setting.lens.origin, setting.lens.axes)
        middle, _ = project(np.array([0.0, 0.0, 0.5]), setting.lens.origin, setting.lens.axes)
        across = flat[:, 0] - middle[0]
        for offset, sign in zip(across, (ahead, leftwards), strict=True):
            assert sign == 0 or np.sign(offset) == sign


def test_colours_are_distinct_in_the_showroom() -> None:
    vehicle = dataclasses.replace(vehicle_identities(1, 0)[0], model=MODELS[0], shade=1.0)
    black = in_studio(vehicle, colour="black", marks=NO_MARKS)
    white = in_studio(vehicle, colour="white", marks=NO_MARKS)
    paint = np.abs(white - black).min(axis=2) > 0.3
    assert paint.sum() > 300
    seen = {}
    for colour in VEHICLE_COLOURS:
        light = in_studio(vehicle, colour=colour, marks=NO_MARKS)
        seen[colour] = 255.0 * np.sqrt(np.minimum(1.0, np.median(light[paint], axis=0)))
    for colour, value in seen.items():
        for other, its in seen.items():
            assert colour == other or np.abs(value - its).max() > 25.0, (colour, other)
    for colour, channel in {"red": 0, "green": 1, "blue": 2}.items():
        assert seen[colour].argmax() == channel
    greys = [seen[name].mean() for name in ("black", "grey", "silver", "white")]
    assert greys == sorted(greys)


def test_body_styles_have_silhouettes_of_their_own() -> None:
    vehicle = dataclasses.replace(vehicle_identities(1, 0)[0], marks=NO_MARKS, year=2011)
    masks = {}
    for model in MODELS[::2]:
        changed = dataclasses.replace(vehicle, model=model)
        setting = arrange(changed, SHOWROOM, generator("test"), (64, 64), view="left")
        masks[model.body_style] = (render(setting, (64, 64)).owners == 0).mean(axis=2)
    names = list(masks)
    for name in names:
        for other in names[names.index(name) + 1 :]:
            overlap = np.minimum(masks[name], masks[other]).sum()
            union = np.maximum(masks[name], masks[other]).sum()
            assert overlap / union < 0.95, (name, other)


def test_scene_boxes_lie_inside_the_picture_and_the_seed_decides_all() -> None:
    scene = draw_scene(3, 4, size=(96, 144), num_pedestrians=2)
    assert scene.image.shape == (96, 144, 3)
    assert len(scene.boxes) == len(scene.class_names) == len(scene.captions) > 3
    for left, top, right, bottom in scene.boxes:
        assert 0 <= left < right <= 144
        assert 0 <= top < bottom <= 96
    assert draw_scene(3, 4, size=(96, 144), num_pedestrians=2).encoded == scene.encoded
    assert draw_scene(4, 4, size=(96, 144), num_pedestrians=2).encoded != scene.encoded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domain": "studio"}, "unknown domain 'studio'"),
        ({"domain": "street", "camera": "c9"}, "unknown camera 'c9'"),
        ({"domain": "showroom", "camera": "c1"}, "no camera 'c1'"),
        ({"domain": "showroom", "view": "top"}, "unknown view 'top'"),
        ({"domain": "showroom", "size": (4, 64)}, "at least 8 pixels"),
        ({"domain": "showroom", "outfit": 3}, "outfit 3 is not in 0 to 2"),
    ],
)
def test_impossible_drawings_are_refused(arguments: dict[str, object], message: str) -> None:
    person: Pedestrian = pedestrian_identities(1, 0)[0]
    with pytest.raises(ValueError, match=message):
        draw(person, **arguments)  # type: ignore[arg-type]


def test_scenes_without_objects_or_with_too_many_are_refused() -> None:
    for num_vehicles in (0, 10):
        with pytest.raises(ValueError, match="1 to 9 objects"):
            draw_scene(0, num_vehicles)
