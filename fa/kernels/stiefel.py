# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The passes over a basis Y (n, m) that a proximal step on Y^T Y = I makes, compiled; the rows are shared by threads.

A pass returns sums over the rows; rows of Y that are zero, and entries that are, cost next to nothing.
"""

import numpy as np

from fa.kernels import symmetric
from fa.kernels.cache import jit
from fa.kernels.cpu import run_on_threads


def prox(
    G: np.ndarray, Y: np.ndarray, T: np.ndarray, C: np.ndarray, t: float, rows: bool, Z: np.ndarray
) -> tuple[np.ndarray, float, float, np.ndarray, np.ndarray]:
    """Z (n, m) := the proximal map, with threshold t, of V = Y T + G^T C, of the entries or, if `rows`, of the rows.

    Returns Y^T Z (m, m), ||Z||^2, ||Z - Y||^2, and what the Hessian of ||Z||^2/2 by a symmetric T is made of: blocks
    (m, m, m), sum over i of c_ij Y_ia Y_ib at [j, a, b], and bend, sum of d_i f_i f_i^T with f_i the coefficients of
    v_i^T T y_i in the upper triangle of T. c and d are the derivative of the map: c Id + d v v^T.
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
    """Z (n, m) := Z + Z S where Z is not 0, and of the new Z the blocks (m, m, m): sum over the rows where Z_ij is not
    0 of Z_ia Z_ib, at [j, a, b].
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
