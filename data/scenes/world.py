"""The embedded demo world: pictures of coloured shapes, and true captions of them in four languages.

A picture is a function of (seed, index) alone, so it is the same whichever process draws it. The scene, that is the
ground truth, is used to draw and to caption; region features come from the pixels only.
"""

import itertools
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data.scenes import grammar as scene_grammar
from data.scenes.grammar import Plan
from data.scenes.mention import Mention

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent")
COLOURS = {
    "red": (208, 24, 32), "orange": (250, 134, 10), "yellow": (250, 224, 30), "green": (22, 138, 48),
    "blue": (28, 66, 204), "purple": (118, 34, 158), "pink": (255, 118, 188), "black": (22, 22, 26),
}  # fmt: skip
SIZES = {"small": 0.088, "medium": 0.132, "large": 0.188}  # radius as a fraction of the picture's side
TEXTURES = ("plain", "striped", "dotted", "checkered")
BACKGROUNDS = {"grey": (168, 168, 170), "beige": (214, 202, 174), "blue": (176, 194, 214), "green": (184, 206, 182)}
BACKGROUND_KINDS = ("plain", "gradient", "noise", "stripes")

# A pattern's second colour must differ from the first: dark on light colours, light on dark ones.
DARK_PATTERN = ("orange", "yellow", "pink")
PATTERN_PERIOD = 0.056  # of the picture's side: three to four stripes on a small object
GAP = 0.025  # between objects that do not overlap, as a fraction of the side


@dataclass(frozen=True)
class SceneObject:
    """One shape. `x`, `y` (centre, y downwards) and `radius` are fractions of the picture's side; angles in radians."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float
    texture_angle: float
    brightness: int  # added to each of the colour's 0..255 channels


@dataclass(frozen=True)
class Scene:
    """A picture's ground truth. `objects` are in drawing order; `covered` lists pairs (front, back) that overlap."""

    seed: int
    index: int
    objects: tuple[SceneObject, ...]
    covered: tuple[tuple[int, int], ...]
    background: str
    background_kind: str
    background_angle: float


def make_scene(seed: int, index: int) -> Scene:
    """Draw the scene of picture `index` of world `seed`: three to five objects, no two alike in colour and shape."""
    rng = random.Random(f"scene {seed} {index}")
    count = rng.choice((3, 3, 3, 4, 4, 5))
    looks: list[tuple[str, str]] = []
    while len(looks) < count:
        look = (rng.choice(SHAPES), rng.choice(list(COLOURS)))
        if look not in looks:
            looks.append(look)
    want_overlap = looks[0][1] != looks[1][1] and rng.random() < 0.5

    objects = None
    while objects is None:
        objects = _arrange(rng, looks, want_overlap)
    return Scene(
        seed=seed,
        index=index,
        objects=objects,
        covered=((1, 0),) if want_overlap else (),
        background=rng.choice(list(BACKGROUNDS)),
        background_kind=rng.choice(BACKGROUND_KINDS),
        background_angle=rng.uniform(0, 2 * math.pi),
    )


def _arrange(rng: random.Random, looks, want_overlap: bool) -> tuple[SceneObject, ...] | None:
    """Try to place all objects; None when they do not fit. With `want_overlap` the second partly covers the first."""
    sizes = [rng.choice(list(SIZES)) for _ in looks]
    if sizes.count("large") > 2:
        return None
    placed: list[SceneObject] = []
    for (shape, colour), size in zip(looks, sizes):
        radius = SIZES[size] * rng.uniform(0.96, 1.04)
        overlapping = want_overlap and len(placed) == 1
        others = () if overlapping else placed
        for _ in range(30):
            edge = 1.12 * radius + 0.01
            x, y = rng.uniform(edge, 1 - edge), rng.uniform(edge, 1 - edge)
            if overlapping:  # near the first object, in any direction
                near, turn = rng.uniform(0.55, 0.85) * (radius + placed[0].radius), rng.uniform(0, 2 * math.pi)
                x, y = placed[0].x + near * math.cos(turn), placed[0].y + near * math.sin(turn)
                if not (edge < x < 1 - edge and edge < y < 1 - edge):
                    continue
            if all(math.hypot(x - o.x, y - o.y) > 1.08 * (radius + o.radius) + GAP for o in others):
                break
        else:
            return None
        item = SceneObject(
            shape=shape,
            colour=colour,
            size=size,
            texture=rng.choice(TEXTURES),
            x=x,
            y=y,
            radius=radius,
            angle=rng.uniform(-0.25, 0.25),
            texture_angle=rng.choice((0.0, 0.25, 0.5, 0.75)) * math.pi,
            brightness=rng.randint(-6, 6),
        )
        placed.append(item)
        if overlapping and not _overlap_is_fair(placed[1], placed[0]):
            return None
    return tuple(placed)


def _overlap_is_fair(front: SceneObject, back: SceneObject) -> bool:
    """The overlap can be seen, and at least 65% of the object behind can be seen too."""
    front_mask, back_mask = silhouette(front, 64), silhouette(back, 64)
    common = (front_mask & back_mask).sum()
    return 0.08 * min(front_mask.sum(), back_mask.sum()) <= common <= 0.35 * back_mask.sum()


# ---- what holds in a scene ------------------------------------------------------------------------------------------


def relations(scene: Scene, a: int, b: int) -> list[str]:
    """What object `a` is to object `b`: left, right, above, below, beside, front, behind; may be empty.

    Left to below need one axis to dominate, so that nobody could object to them.
    """
    if (a, b) in scene.covered:
        return ["front"]
    if (b, a) in scene.covered:
        return ["behind"]
    first, second = scene.objects[a], scene.objects[b]
    dx, dy = second.x - first.x, second.y - first.y
    found = []
    if abs(dx) > 0.15 and abs(dx) > 1.2 * abs(dy):
        found.append("left" if dx > 0 else "right")
    if abs(dy) > 0.15 and abs(dy) > 1.2 * abs(dx):
        found.append("above" if dy > 0 else "below")
    if math.hypot(dx, dy) - first.radius - second.radius < 0.1:
        found.append("beside")
    return found


def place(scene: Scene, a: int) -> str | None:
    """The corner an object is in ("top_left" ...), "centre", or None."""
    x, y = scene.objects[a].x, scene.objects[a].y
    if abs(x - 0.5) < 0.11 and abs(y - 0.5) < 0.11:
        return "centre"
    if min(x, 1 - x) < 0.3 and min(y, 1 - y) < 0.3:
        return f"{'top' if y < 0.5 else 'bottom'}_{'left' if x < 0.5 else 'right'}"
    return None


# ---- captions -------------------------------------------------------------------------------------------------------

CAPTIONS_PER_LANGUAGE = {"en": 5, "de": 2, "fr": 2, "cs": 2}
WORDS = {"en": (8, 22), "de": (8, 22), "fr": (8, 26), "cs": (8, 22)}  # French spends words on "à", "de", "sur"
TWO_OBJECTS = ("pair", "background", "places")  # these name two objects, the other kinds three, which says more
KINDS = TWO_OBJECTS + 5 * ("place", "also", "list", "list_background", "count")


def captions(scene: Scene) -> dict[str, list[str]]:
    """Captions by language: five English, two German, two French, two Czech; all true, all different."""
    rng = random.Random(f"captions {scene.seed} {scene.index}")
    result = {}
    for language, count in CAPTIONS_PER_LANGUAGE.items():
        fewest, most = WORDS[language]
        texts: list[str] = []
        # Captions of one picture differ in kind, not only in words; a kind that came out too long makes way.
        for kind in itertools.cycle(rng.sample(KINDS, len(KINDS))):
            text = scene_grammar.sentence(language, plan_caption(scene, kind, rng), rng)
            if text not in texts and fewest <= len(text.split()) <= most:
                texts.append(text)
            if len(texts) == count:
                break
        result[language] = texts
    return result


def plan_caption(scene: Scene, kind: str, rng: random.Random) -> Plan:
    """Choose what a caption says. A kind that the scene cannot fill becomes "pair" (or "list" without any relation)."""
    n = len(scene.objects)
    order = rng.sample(range(n), n)
    relation = None
    if kind == "places":
        order = [i for i in order if place(scene, i)]
        if len({place(scene, i) for i in order[:2]}) < 2:
            order, kind = rng.sample(range(n), n), "pair"
    if kind == "place":  # the third object is the one in a corner
        settled = [i for i in order if place(scene, i)]
        if settled:
            order.remove(settled[0])
            order.insert(2, settled[0])
        else:
            kind = "also"
    if kind in ("pair", "background", "place", "also"):
        free = order[:2] if kind == "place" else order
        pairs = [(a, b) for a in free for b in free if a != b and relations(scene, a, b)]
        if pairs:
            a, b = rng.choice(pairs)
            relation = rng.choice(relations(scene, a, b))
            order = [a, b] + [i for i in order if i not in (a, b)]
        else:
            kind = "list"

    wanted = 2 if kind in TWO_OBJECTS else 3
    chosen = order[:wanted]
    return Plan(
        kind=kind,
        mentions=[_mention(scene.objects[i], rng, brief=len(chosen) == 3) for i in chosen],
        relation=relation,
        places=[place(scene, i) for i in chosen],
        count=n,
        background=scene.background,
        background_kind=scene.background_kind,
    )


def _mention(item: SceneObject, rng: random.Random, brief: bool) -> Mention:
    """Colour and shape always, and size or texture or both; "plain" and "medium" are remarked on less often."""
    say_size = rng.random() < (0.45 if item.size == "medium" else 0.9)
    say_texture = rng.random() < (0.45 if item.texture == "plain" else 0.9)
    if not (say_size or say_texture):
        say_size = rng.random() < 0.5
        say_texture = not say_size
    if brief and say_size and say_texture:
        say_size = rng.random() < 0.3
        say_texture = not say_size
    return Mention(item.shape, item.colour, item.size if say_size else None, item.texture if say_texture else None)


# ---- drawing --------------------------------------------------------------------------------------------------------


def _ellipse(radius: float = 1.0, x: float = 0.0) -> list[tuple[float, float]]:
    return [(x + radius * math.cos(t * math.pi / 20), radius * math.sin(t * math.pi / 20)) for t in range(40)]


def _star() -> list[tuple[float, float]]:
    reach = [1.08 if k % 2 == 0 else 0.48 for k in range(10)]
    return [(r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5)) for k, r in enumerate(reach)]


def _heart() -> list[tuple[float, float]]:
    turns = [k * math.pi / 20 for k in range(40)]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.1)
        for t in turns
    ]


_C = 0.36  # half the width of a cross's arm
# Polygons in a frame where the object's radius is 1 and y points down; a second polygon is a hole.
OUTLINES = {
    "circle": [_ellipse()],
    "square": [[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]],
    "triangle": [[(0, -1.0), (1.0, 0.78), (-1.0, 0.78)]],
    "star": [_star()],
    "cross": [
        [(-_C, -1), (_C, -1), (_C, -_C), (1, -_C), (1, _C), (_C, _C)]
        + [(_C, 1), (-_C, 1), (-_C, _C), (-1, _C), (-1, -_C), (-_C, -_C)]
    ],
    "ring": [_ellipse(), _ellipse(0.55)],
    "heart": [_heart()],
    "crescent": [_ellipse(), _ellipse(0.82, x=0.48)],
}


def _draw_mask(item: SceneObject, origin: tuple[float, float], width: int, scale: float) -> Image.Image:
    """Draw the object's silhouette on a [width, width] image; `origin` (pixels) is its left upper corner."""
    mask = Image.new("L", (width, width))
    draw = ImageDraw.Draw(mask)
    cos, sin = math.cos(item.angle) * item.radius, math.sin(item.angle) * item.radius
    for hole, outline in enumerate(OUTLINES[item.shape]):
        points = [
            ((item.x + u * cos - v * sin) * scale - origin[0], (item.y + u * sin + v * cos) * scale - origin[1])
            for u, v in outline
        ]
        draw.polygon(points, fill=0 if hole else 255)
    return mask


def silhouette(item: SceneObject, size: int) -> np.ndarray:
    """The object's pixels, drawn alone: bool [size, size]."""
    return np.asarray(_draw_mask(item, (0, 0), size, size)) > 127


def _pattern(item: SceneObject, left: int, top: int, width: int, scale: float) -> np.ndarray:
    """Where the texture shows its second colour: bool [width, width]."""
    v, u = np.ogrid[top : top + width, left : left + width]
    u = (u / scale - item.x) / PATTERN_PERIOD
    v = (v / scale - item.y) / PATTERN_PERIOD
    cos, sin = math.cos(item.texture_angle), math.sin(item.texture_angle)
    along, across = u * cos - v * sin, u * sin + v * cos
    if item.texture == "striped":
        return along % 1 < 0.5
    if item.texture == "dotted":
        return (along % 1 - 0.5) ** 2 + (across % 1 - 0.5) ** 2 < 0.1
    return (np.floor(1.5 * along) + np.floor(1.5 * across)) % 2 == 0


def _background(scene: Scene, size: int) -> Image.Image:
    base = np.array(BACKGROUNDS[scene.background], dtype=np.float32)
    v, u = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    along = u * math.cos(scene.background_angle) + v * math.sin(scene.background_angle)
    if scene.background_kind == "gradient":
        light = 60 * along
    elif scene.background_kind == "stripes":
        light = 9 * np.sin(along * 2 * math.pi * 9)
    elif scene.background_kind == "noise":
        rng = np.random.default_rng([scene.seed, scene.index])
        light = rng.integers(-16, 17, (size, size)).astype(np.float32)
    else:
        light = np.zeros((size, size), dtype=np.float32)
    return Image.fromarray((base + light[..., None]).clip(0, 255).astype(np.uint8))


def render(scene: Scene, size: int) -> Image.Image:
    """Draw the scene: an RGB image of size × size pixels. Outlines are drawn four times as large, for smooth edges."""
    picture = _background(scene, size)
    fine = 4
    for item in scene.objects:
        reach = 1.2 * item.radius * size
        left, top = int(item.x * size - reach), int(item.y * size - reach)
        width = int(2 * reach) + 2
        mask = _draw_mask(item, (left * fine, top * fine), width * fine, size * fine).reduce(fine)
        base = tuple(min(255, max(0, c + item.brightness)) for c in COLOURS[item.colour])
        patch = Image.new("RGB", (width, width), base)
        if item.texture != "plain":
            half = 2  # patterns are coarser than outlines: twice as large is smooth enough
            second = tuple(c // 2 for c in base) if item.colour in DARK_PATTERN else tuple(c // 5 + 200 for c in base)
            pattern = _pattern(item, left * half, top * half, width * half, size * half)
            shown = Image.fromarray(pattern.astype(np.uint8) * 255).reduce(half)
            rim = mask.filter(ImageFilter.MinFilter(3))  # the outline keeps the object's own colour
            patch.paste(Image.new("RGB", (width, width), second), mask=Image.composite(shown, rim, rim))
        picture.paste(patch, (left, top), mask)
    return picture
