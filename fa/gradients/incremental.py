"""The Gram matrix of gradients that arrive one after another."""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fa import kernels
from fa.gradients.gram import Square


class IncrementalGram:
    """Inner products of rows of G (p, n) that arrive one after another.

    Three rows are multiplied at a time, since a pass over three costs as much as a pass over one. After the last row,
    at most a third of the work remains from p = 15 on, and half at p = 9.

    Args:
        G: Matrix (p, n), whose rows are filled in any order.
    """

    def __init__(self, G: Float[Tensor, "p n"]) -> None:
        self._G = G
        self._K = np.full((len(G), len(G)), np.nan)
        self._multiplied: list[int] = []
        self._waiting: list[int] = []

    def add_row(self, row: int) -> None:
        """Add a row that has arrived.

        Args:
            row: Index of the row in G, which does not change any more.
        """
        self._waiting.append(row)
        if len(self._waiting) == 3:
            self._multiply_waiting()

    def matrix(self) -> Square:
        """Return the inner products (p, p), with the bits of one pass over G; NaN in rows that have not arrived."""
        if self._waiting:
            self._multiply_waiting()
        return self._K

    def _multiply_waiting(self) -> None:
        """Multiply the waiting rows with all rows so far."""
        rows, self._waiting = self._waiting, []
        self._multiplied += rows
        products = kernels.gram_rows(self._G, rows, self._multiplied)
        self._K[np.ix_(rows, self._multiplied)] = products
        self._K[np.ix_(self._multiplied, rows)] = products.T
