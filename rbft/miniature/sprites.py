"""The actors and things of the miniature world: hand-drawn bitmaps and the colours to fill them."""

from functools import cache

import numpy as np
from jaxtyping import Float
from numpy import ndarray

# `#` body, `o` dark part, `+` light part, `.` see-through. Subjects look to the right.
BITMAPS = {
    "person": """
....####....
....#++#....
....#+o#....
.....##.....
...######...
..##o##o##..
..#.#oo#.##.
..#.####..#.
....#..#....
....#..#....
....#..#....
...oo..oo...""",
    "dog": """
............
#.......##..
#......####.
.#.....o#+#.
.#....##o###
..##########
..#########.
..########..
..##.###.#..
..#...#..#..
..#...#..#..
..o...o..o..""",
    "cat": """
.#..........
#.......#.#.
#.......###.
#......#+#+#
.#.....#####
.#....###o#.
..########..
..########..
..########..
..#.#..#.#..
..#.#..#.#..
..o.o..o.o..""",
    "bear": """
..........#.
......#.####
.....#####+#
..########oo
.###########
############
###########.
###########.
####.##.###.
###..##.###.
###..##.###.
ooo..oo.ooo.""",
    "raccoon": """
............
........#.#.
##.....#####
oo.....oo+oo
##....######
.oo..#####..
..########..
..o########.
..########..
...##..##...
...##..##...
...oo..oo...""",
    "car": """
............
............
............
...######...
..#+++#++#..
.##+++#++##.
############
#+########+#
############
############
.ooo....ooo.
..o......o..""",
    "package": """
............
............
............
.##########.
.####++####.
.####++####.
.####++####.
.####oo####.
.##########.
.##########.
.##########.
.##########.""",
    "bin": """
............
....oooo....
.oooooooooo.
.++++++++++.
..########..
..#o##o##o..
..#o##o##o..
..#o##o##o..
..#o##o##o..
..########..
...######...
...######...""",
    "bike": """
............
............
..##.....##.
...#.....#..
...########.
...##...##..
.####..####.
#.##.##.##.#
#..#.##.#..#
#....##....#
.#..#..#..#.
..oo....oo..""",
    "plant": """
.....##.....
.##..##..##.
.###.##.###.
..########..
....####....
.##..##.###.
..########..
.....##.....
...++++++...
...++++++...
....oooo....
....oooo....""",
}

COLOURS = {
    "red": (205, 45, 40),
    "green": (45, 155, 60),
    "blue": (50, 80, 210),
    "yellow": (225, 200, 45),
    "white": (230, 230, 230),
    "black": (35, 35, 35),
}


@cache
def sprite(name: str, colour: str, size: int) -> Float[ndarray, "{size} {size} 4"]:
    """A square picture of a subject or an object: red, green, blue (0-255) and opacity (0 or 1).

    Args:
        name: A key of `BITMAPS`.
        colour: A key of `COLOURS`.
        size: Side in pixels; the bitmap is scaled to it by nearest neighbour.
    """
    body = np.array(COLOURS[colour], dtype=np.float32)
    paint = {
        "#": (*body, 1.0),
        "o": (*(0.45 * body), 1.0),
        "+": (*(0.5 * body + 127.5), 1.0),
        ".": (0.0, 0.0, 0.0, 0.0),
    }
    rows = BITMAPS[name].split()
    picture = np.array([[paint[mark] for mark in row] for row in rows], dtype=np.float32)
    nearest = np.arange(size) * len(rows) // size
    return picture[nearest][:, nearest]
