"""Coordinates of p gradients in an orthonormal basis of their span: p points in at most p dimensions.

Rules that move a point among the gradients work on these coordinates. Unlike sums of squared distances, they do not
cancel if one gradient is many orders of magnitude longer than the others.
"""

import numpy as np
from jaxtyping import Float64

from fa.gradients.gram import LARGEST_NORM, Gram, PerGradient, Square

Points = Float64[np.ndarray, "p r"]


def points(gram: Gram) -> Points:
    """Compute coordinates of the gradients over `gram.scale`.

    Args:
        gram: Gram matrix of p gradients.

    Returns:
        One point for each gradient, (p, p); the origin is the zero gradient.
    """
    return _embed(gram.clipped_norms, gram.cosines)


def centred_points(gram: Gram) -> Points:
    """Compute coordinates of the gradients over `gram.scale`, relative to a central gradient.

    The central gradient has the nearest majority. Coordinates relative to it stay precise under a common offset of all
    gradients. An inner product of differences comes from distances or from products, whichever cancels less.

    Args:
        gram: Gram matrix of p gradients.

    Returns:
        One point for each gradient, (p, p); distances between points are those of the gradients.
    """
    D2, K = gram.D2, gram.K
    r = int(np.argmin(np.sort(D2, axis=1)[:, gram.p // 2]))
    near, first, second = D2[:, [r]], K[:, [r]], K[[r], :]
    by_distances = (near + near.T - D2) / 2
    by_products = K - first - second + K[r, r]
    lost_by_distances = near + near.T + D2
    lost_by_products = np.abs(K) + np.abs(first) + np.abs(second) + K[r, r]
    products = np.where(lost_by_distances <= lost_by_products, by_distances, by_products)
    lengths = np.sqrt(near[:, 0])
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 1 / LARGEST_NORM)
    cosines = np.clip(products * np.outer(inverse, inverse), -1.0, 1.0)
    np.fill_diagonal(cosines, 1.0)
    return _embed(lengths, cosines)


def _embed(lengths: PerGradient, cosines: Square) -> Points:
    eigenvalues, vectors = np.linalg.eigh(cosines)
    coordinates: np.ndarray = lengths[:, None] * (vectors * np.sqrt(np.maximum(eigenvalues, 0.0)))
    return coordinates
