# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Compiled passes over a basis Y (n, m) for a proximal step on Y^T Y = I.

Threads share the rows, and a pass returns sums over them. Zero rows and zero entries of Y cost almost nothing.
"""

import numpy as np

from fa.kernels import symmetric
from fa.kernels.cache import jit
from fa.kernels.threads import run_on_threads


def prox(
    G: np.ndarray, Y: np.ndarray, T: np.ndarray, C: np.ndarray, t: float, rows: bool, Z: np.ndarray
) -> tuple[np.ndarray, float, float, np.ndarray, np.ndarray]:
    """Write the proximal map of V = Y T + G^T C to Z, with sums for Newton's method.

    The derivative of the map at row i is c_i Id + d_i v_i v_i^T. The Hessian of ||Z||^2/2 with respect to a symmetric T
    consists of `blocks` and `bend`.

    Args:
        G: Gradients (q, n).
        Y: Basis (n, m), float64.
        T: Multiplier (m, m), float64.
        C: Coefficients (q, m), float64.
        t: Threshold of the map.
        rows: Apply the map to rows rather than to entries.
        Z: Result (n, m), float64.

    Returns:
        A tuple of five sums over the rows i.

        - Y^T Z (m, m);
        - ||Z||^2;
        - ||Z - Y||^2;
        - blocks (m, m, m), the sum of c_ij Y_ia Y_ib at [j, a, b];
        - bend, the sum of d_i f_i f_i^T, with f_i the coefficients of v_i^T T y_i in the upper triangle of T.
    """
    m = Y.shape[1]
    half = m * (m + 1) // 2

    def work(thread: int, threads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        products, squares = np.zeros((m, m)), np.zeros(2)
        blocks, bend = np.zeros((m, m, m)), np.zeros((half, half))
        _prox(G, Y, T, C, t, rows, Z, products, squares, blocks, bend, thread, threads)
        return products, squares, blocks, bend

    products, squares, blocks, bend = (sum(parts) for parts in zip(*run_on_threads(work, Y.size), strict=True))
    lower = np.tril_indices(m, -1)
    blocks[:, lower[0], lower[1]] = blocks[:, lower[1], lower[0]]
    return products, float(squares[0]), float(squares[1]), blocks, symmetric(bend)


@jit
def _prox(G, Y, T, C, t, rows, Z, products, squares, blocks, bend, thread, threads):
    """Run `prox` on one thread's share of the rows, and add to the sums."""
    (n, m), q = Y.shape, G.shape[0]
    v, f = np.zeros(m), np.zeros(bend.shape[0])
    for i in range(n * thread // threads, n * (thread + 1) // threads):
        v[:] = 0.0
        dense = False
        for k in range(q):
            g = np.float64(G[k, i])
            for j in range(m):
                v[j] += g * C[k, j]
        for a in range(m):
            y = Y[i, a]
            if y != 0.0:
                dense = True
                for j in range(m):
                    v[j] += y * T[a, j]
        length = 0.0
        for j in range(m):
            length += v[j] * v[j]
        length = np.sqrt(length)
        for j in range(m):
            if rows:
                z = v[j] * (1.0 - t / length) if length > t else 0.0
            else:
                z = v[j] - t if v[j] > t else (v[j] + t if v[j] < -t else 0.0)
            Z[i, j] = z
            squares[0] += z * z
            squares[1] += (z - Y[i, j]) ** 2
            if dense and z != 0.0:
                for a in range(m):
                    products[a, j] += Y[i, a] * z
                own = 1.0 - t / length if rows else 1.0
                for a in range(m):
                    for b in range(a, m):
                        blocks[j, a, b] += own * Y[i, a] * Y[i, b]
        if rows and dense and length > t:
            s = 0
            for a in range(m):
                for b in range(a, m):
                    f[s] = v[a] * Y[i, b] + (v[b] * Y[i, a] if a < b else 0.0)
                    s += 1
            for s in range(f.size):
                for r in range(s, f.size):
                    bend[s, r] += t / length**3 * f[s] * f[r]


def correct(Z: np.ndarray, S: np.ndarray) -> np.ndarray:
    """Replace Z by Z + Z S where Z is not 0, in place.

    Args:
        Z: Matrix (n, m), float64.
        S: Symmetric matrix (m, m), float64.

    Returns:
        Blocks (m, m, m) of the new Z. Entry [j, a, b] is the sum of Z_ia Z_ib over the rows i where Z_ij is not 0.
    """
    m = Z.shape[1]

    def work(thread: int, threads: int) -> np.ndarray:
        blocks = np.zeros((m, m, m))
        _correct(Z, S, blocks, thread, threads)
        return blocks

    blocks: np.ndarray = sum(run_on_threads(work, Z.size))
    lower = np.tril_indices(m, -1)
    blocks[:, lower[0], lower[1]] = blocks[:, lower[1], lower[0]]
    return blocks


@jit
def _correct(Z, S, blocks, thread, threads):
    """Run `correct` on one thread's share of the rows, and add to the blocks."""
    n, m = Z.shape
    z, support = np.zeros(m), np.zeros(m, dtype=np.int64)
    for i in range(n * thread // threads, n * (thread + 1) // threads):
        count = 0
        for j in range(m):
            if Z[i, j] != 0.0:
                support[count] = j
                count += 1
        for s in range(count):
            z[s] = Z[i, support[s]]
        for s in range(count):
            j, new = support[s], z[s]
            for r in range(count):
                new += z[r] * S[support[r], j]
            Z[i, j] = new
        for s in range(count):
            for r in range(s, count):
                product = Z[i, support[s]] * Z[i, support[r]]
                for u in range(count):
                    blocks[support[u], support[s], support[r]] += product
