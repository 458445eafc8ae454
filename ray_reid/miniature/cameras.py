"""The cameras: a studio, and eight street cameras that each see the world in their own way."""

from dataclasses import dataclass

import numpy as np

from ray_reid.miniature.shapes import Floats

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Camera:
    """How one camera sees.

    Attributes:
        name: Value of the camera column; None in the studio, which is no camera of a network.
        pitch: Degrees the camera looks down on the object.
        focal: Distance to the object in object sizes; short distances distort.
        heading: Where the camera mostly stands around the object, degrees to the left of the
            object's front.
        spread: Half the range of headings around that, degrees; 180 sees every side alike.
        sun: Azimuth and elevation of the light in degrees, azimuth from behind the camera.
        sun_colour: Linear colour of direct light.
        sky_colour: Linear colour of light from above.
        bounce_colour: Linear colour of light from below.
        noise: Standard deviation of sensor noise, in 8-bit levels.
        quality: JPEG quality, 1 to 95.
        ground: Key of `backgrounds.GROUNDS`.
        wall: Key of `backgrounds.WALLS`.
        occluders: Kinds of `occluders.OCCLUDERS` that stand before this camera.
        occlusion: Chance that one of them stands before the object.
        looseness: How far a crop is wider than its object, at most, as a share.
    """

    name: str | None
    pitch: float
    focal: float
    heading: float
    spread: float
    sun: tuple[float, float]
    sun_colour: Triple
    sky_colour: Triple
    bounce_colour: Triple
    noise: float
    quality: int
    ground: str
    wall: str
    occluders: tuple[str, ...] = ()
    occlusion: float = 0.0
    looseness: float = 0.3

    def light(self) -> Floats:
        """(4, 3) table for the caster: direction to the sun, sun, sky and bounce colours.

        The camera looks along +x of the world, so light from behind it comes from -x.
        """
        azimuth, elevation = np.radians(self.sun)
        level = np.cos(elevation)
        toward = (-level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation))
        return np.array([toward, self.sun_colour, self.sky_colour, self.bounce_colour])


SHOWROOM = Camera(
    name=None,
    pitch=12.0,
    focal=3.2,
    heading=0.0,
    spread=180.0,
    sun=(35.0, 55.0),
    sun_colour=(0.62, 0.62, 0.62),
    sky_colour=(0.55, 0.55, 0.55),
    bounce_colour=(0.36, 0.36, 0.36),
    noise=0.0,
    quality=95,
    ground="studio",
    wall="studio",
    looseness=0.06,
)

STREET: dict[str, Camera] = {
    camera.name: camera
    for camera in (
        # Noon at a long lens.
        Camera(
            name="c1",
            pitch=14.0,
            focal=5.0,
            heading=20.0,
            spread=110.0,
            sun=(40.0, 50.0),
            sun_colour=(0.80, 0.76, 0.68),
            sky_colour=(0.34, 0.38, 0.45),
            bounce_colour=(0.16, 0.15, 0.14),
            noise=3.0,
            quality=80,
            ground="asphalt",
            wall="houses",
            occluders=("pole",),
            occlusion=0.3,
        ),
        # A crossing from above, light from the side.
        Camera(
            name="c2",
            pitch=30.0,
            focal=2.6,
            heading=140.0,
            spread=120.0,
            sun=(-75.0, 38.0),
            sun_colour=(0.85, 0.78, 0.62),
            sky_colour=(0.30, 0.34, 0.42),
            bounce_colour=(0.15, 0.14, 0.12),
            noise=4.0,
            quality=70,
            ground="cobbles",
            wall="brick",
            occluders=("pole", "bollards"),
            occlusion=0.35,
        ),
        # Sodium lamps in a tunnel: little light, much noise.
        Camera(
            name="c3",
            pitch=18.0,
            focal=3.0,
            heading=180.0,
            spread=130.0,
            sun=(10.0, 75.0),
            sun_colour=(0.58, 0.42, 0.24),
            sky_colour=(0.22, 0.17, 0.11),
            bounce_colour=(0.07, 0.05, 0.035),
            noise=8.0,
            quality=50,
            ground="asphalt",
            wall="tunnel",
            occluders=(),
            occlusion=0.0,
        ),
        # A roof camera over a car park.
        Camera(
            name="c4",
            pitch=42.0,
            focal=4.0,
            heading=300.0,
            spread=130.0,
            sun=(120.0, 45.0),
            sun_colour=(0.72, 0.70, 0.66),
            sky_colour=(0.38, 0.40, 0.44),
            bounce_colour=(0.20, 0.19, 0.18),
            noise=3.0,
            quality=75,
            ground="concrete",
            wall="parking",
            occluders=("bush",),
            occlusion=0.3,
        ),
        # Overcast: no shadows to speak of, bluish.
        Camera(
            name="c5",
            pitch=20.0,
            focal=4.5,
            heading=90.0,
            spread=120.0,
            sun=(0.0, 80.0),
            sun_colour=(0.16, 0.17, 0.18),
            sky_colour=(0.62, 0.68, 0.80),
            bounce_colour=(0.20, 0.21, 0.23),
            noise=4.0,
            quality=65,
            ground="lawn",
            wall="trees",
            occluders=("bush", "pole"),
            occlusion=0.3,
        ),
        # Low evening sun from behind the object.
        Camera(
            name="c6",
            pitch=10.0,
            focal=3.5,
            heading=330.0,
            spread=120.0,
            sun=(150.0, 18.0),
            sun_colour=(0.95, 0.58, 0.28),
            sky_colour=(0.42, 0.38, 0.42),
            bounce_colour=(0.20, 0.15, 0.11),
            noise=5.0,
            quality=70,
            ground="asphalt",
            wall="trees",
            occluders=("fence",),
            occlusion=0.35,
        ),
        # Dusk: dark and blue under a street lamp.
        Camera(
            name="c7",
            pitch=24.0,
            focal=3.2,
            heading=220.0,
            spread=130.0,
            sun=(60.0, 60.0),
            sun_colour=(0.30, 0.30, 0.34),
            sky_colour=(0.13, 0.16, 0.25),
            bounce_colour=(0.05, 0.055, 0.08),
            noise=7.0,
            quality=55,
            ground="concrete",
            wall="houses",
            occluders=("bollards",),
            occlusion=0.3,
        ),
        # A cheap wide camera at a gate, overexposed.
        Camera(
            name="c8",
            pitch=7.0,
            focal=1.9,
            heading=45.0,
            spread=140.0,
            sun=(-30.0, 65.0),
            sun_colour=(1.00, 0.98, 0.92),
            sky_colour=(0.50, 0.52, 0.55),
            bounce_colour=(0.28, 0.27, 0.25),
            noise=4.0,
            quality=45,
            ground="cobbles",
            wall="parking",
            occluders=("pole", "fence"),
            occlusion=0.35,
        ),
    )
    if camera.name is not None
}
