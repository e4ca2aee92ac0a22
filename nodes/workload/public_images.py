"""Public images that are nobody's: glyphs in the shape of a data set's images."""

import numpy as np
from numpy.typing import NDArray

from nodes.workload.data import draw
from testbed.seeds import derive


def glyphs(count: int, *, seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Images (count, *shape) as the data set glyphs has them, and none of its own.

    ``shape``: channels, height and width. Where there is more than one channel ink and ground have
    colours, drawn for each image; where it is no square of an even side, they are cut out of one.
    """
    channels, height, width = shape
    side = max(height, width)
    stream = derive(seed, "public glyphs")
    images, _ = draw(count, stream, side + side % 2)
    images = images[:, :, :height, :width]
    if channels == 1:
        return np.ascontiguousarray(images)
    rng = np.random.default_rng([stream, channels])
    ink, ground = rng.random((2, count, channels, 1, 1), dtype=np.float32)
    coloured: NDArray[np.float32] = ground + images * (ink - ground)
    return coloured
