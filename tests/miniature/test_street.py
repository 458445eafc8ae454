"""Identities of the drawn world and the street data set made of them."""

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest

from ray_reid import schema
from ray_reid.miniature import (
    CAMERAS,
    draw_shot,
    pedestrian_identities,
    plan_street,
    street_observations,
    vehicle_identities,
)
from ray_reid.miniature.vehicle_models import BODY_STYLES, BRANDS, MODELS, VEHICLE_COLOURS, YEARS
from ray_reid.miniature.vehicles import MAX_VEHICLES, mark_values, vehicle_identity

PLANS = [
    plan_street("vehicle", 9, 7, 2, 2, 0, (32, 32)),
    plan_street("vehicle", 4, 12, 4, 8, 1, (32, 32)),
    plan_street("pedestrian", 8, 9, 3, 4, 0, (32, 16)),
]


def test_the_catalogue_is_as_wide_as_promised() -> None:
    assert len(BODY_STYLES) >= 8
    assert {model.body_style for model in MODELS} == set(BODY_STYLES)
    assert len({(model.brand, model.name) for model in MODELS}) >= 12
    assert {model.brand for model in MODELS} == set(BRANDS)
    assert len(VEHICLE_COLOURS) >= 10
    assert len(YEARS) >= 3


def test_identities_do_not_depend_on_how_many_are_made() -> None:
    assert vehicle_identities(40, 5)[:7] == vehicle_identities(7, 5)
    assert pedestrian_identities(40, 5)[:7] == pedestrian_identities(7, 5)
    assert vehicle_identities(4, 5) != vehicle_identities(4, 6)


def test_any_two_vehicles_differ_in_at_least_three_marks() -> None:
    values = np.array([mark_values(number, 0) for number in range(0, MAX_VEHICLES, 23)])
    differing = (values[:, None] != values[None]).sum(axis=2)
    assert differing[~np.eye(len(values), dtype=bool)].min() >= 3


def test_every_world_has_vehicles_that_share_all_prompt_attributes() -> None:
    captions = Counter(vehicle.caption for vehicle in vehicle_identities(16, 3))
    assert sum(count > 1 for count in captions.values()) >= 4


def test_vehicle_captions_follow_the_template() -> None:
    vehicle = vehicle_identities(1, 0)[0]
    model = vehicle.model
    assert vehicle.caption == (
        f"a {vehicle.colour} {vehicle.year} {model.brand} {model.name} {model.body_style} "
        "driving down the road"
    )
    assert vehicle.attributes["body_style"] == model.body_style


def test_pedestrians_differ_in_more_than_clothes() -> None:
    people = pedestrian_identities(600, 0)
    lasting = {(p.gender, p.hair, p.hair_colour, p.face, p.skin, p.height, p.girth) for p in people}
    assert len(lasting) == len(people)


def test_outfits_of_a_pedestrian_differ_in_colour_and_are_named() -> None:
    for person in pedestrian_identities(20, 0):
        for one, two in itertools.combinations(range(3), 2):
            assert person.outfit(one).upper_colour != person.outfit(two).upper_colour
            assert person.outfit(one).lower_colour != person.outfit(two).lower_colour
            assert person.clothes(one) != person.clothes(two)


def test_pedestrian_captions_speak_of_hair_and_clothes() -> None:
    for person in pedestrian_identities(30, 0):
        caption, outfit = person.caption(1), person.outfit(1)
        hair = f"{person.hair} {person.hair_colour} hair"
        assert caption.startswith(f"a {person.gender} with ")
        assert (hair if person.hair != "bald" else "no hair") in caption
        assert f"{outfit.upper_colour} {outfit.upper}, " in caption
        assert caption.endswith(f" and {outfit.footwear_colour} {outfit.footwear}")
        assert " a orange" not in caption


@pytest.mark.parametrize("shots", PLANS)
def test_train_and_test_identities_are_disjoint(shots: list) -> None:
    train = {shot.number for shot in shots if shot.split == "train"}
    test = {shot.number for shot in shots if shot.split != "train"}
    assert train
    assert test
    assert not train & test


@pytest.mark.parametrize("shots", PLANS)
def test_each_test_identity_has_one_query_per_camera_where_it_appears(shots: list) -> None:
    test = [shot for shot in shots if shot.split != "train"]
    queries = Counter((shot.number, shot.camera) for shot in test if shot.split == "query")
    assert set(queries.values()) == {1}
    assert set(queries) == {(shot.number, shot.camera) for shot in test}


@pytest.mark.parametrize("shots", PLANS)
def test_each_query_has_a_true_match_on_another_camera(shots: list) -> None:
    gallery = defaultdict(set)
    for shot in shots:
        if shot.split == "gallery":
            gallery[shot.number].add(shot.camera)
    for shot in shots:
        if shot.split == "query":
            assert gallery[shot.number] - {shot.camera}


@pytest.mark.parametrize("shots", PLANS)
def test_all_cameras_are_used(shots: list) -> None:
    assert {shot.camera for shot in shots} == set(CAMERAS)


def test_pedestrian_queries_have_matches_in_the_same_and_in_other_clothes() -> None:
    shots = plan_street("pedestrian", 0, 10, 3, 3, 0, (32, 16))
    for query in (shot for shot in shots if shot.split == "query"):
        others = {
            shot.outfit
            for shot in shots
            if shot.split == "gallery"
            and shot.number == query.number
            and shot.camera != query.camera
        }
        assert query.outfit in others
        assert others - {query.outfit}


@pytest.mark.parametrize("kind", ["vehicle", "pedestrian"])
def test_rows_make_a_table_of_observations(kind: str) -> None:
    rows = list(street_observations(kind, 2, 2, 2, 3, 0, (32, 24)))
    table = schema.observations(rows)
    assert table.num_rows == 24
    ids = table.column(schema.OBSERVATION_ID).to_pylist()
    assert len(set(ids)) == len(ids)
    first = table.slice(0, 1).to_pylist()[0]
    assert first[schema.IDENTITY] == f"miniature-street-{kind}:0-0"
    assert first[schema.LICENCE] == "Apache-2.0"
    assert (first[schema.CLOTHES] is None) == (kind == "vehicle")
    assert len(set(table.column(schema.IMAGE).to_pylist())) == 24


def test_a_shot_drawn_alone_equals_the_row_drawn_in_order() -> None:
    rows = list(street_observations("pedestrian", 2, 2, 2, 2, 4, (32, 16)))
    shots = plan_street("pedestrian", 2, 2, 2, 2, 4, (32, 16))
    for place in (13, 2, 7):
        assert draw_shot(shots[place]) == rows[place]


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind 'bicycle'"):
        plan_street("bicycle", 1, 1, 2, 2, 0, (64, 64))
    with pytest.raises(ValueError, match="cameras_per_identity is 1"):
        plan_street("vehicle", 1, 1, 2, 1, 0, (64, 64))
    with pytest.raises(ValueError, match="images_per_camera is 1"):
        plan_street("vehicle", 1, 1, 1, 2, 0, (64, 64))
    with pytest.raises(ValueError, match="is not in 0 to"):
        vehicle_identity(MAX_VEHICLES, 0)
