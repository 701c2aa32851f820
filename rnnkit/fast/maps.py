"""The linear maps of one direction of one layer, each made ready once for all of its steps."""

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from ..stack import Weights
from . import products
from .kernels import EXACT, FEW, Arithmetic, Kernel
from .products import Affine, Gradient, Product


class Maps:
    """The products that a direction takes with its weights, and the arithmetic between them.

    kernel  of the equation; says what becomes of the biases, and in which order gates lie on the way back
    steps   how many steps there are, each with a product of at most N rows
    """

    def __init__(self, kernel: Kernel, weights: Weights, steps: int, N: int) -> None:
        self.kernel, self.weights, self.steps, self.N = kernel, weights, steps, N
        #: In float64 values are torch.nn's to the bit, by ATen's operations in ATen's order.
        self.exact = weights.w_hh.dtype != torch.float32
        self.arithmetic: Arithmetic = EXACT if self.exact else FEW

    # Forward --------------------------------------------------------------------------------------------------------

    def exact_igates(self, input: Tensor) -> Tensor:
        """Return the igates (..., G*H) of all steps, to the bit."""
        return F.linear(input, self.weights.w_ih, self.weights.b_ih)

    def igates(self, total: int, most: int) -> Affine:
        """Return the function (x, out) -> igates of x, for calls with `total` rows together and at most `most` in one."""
        return products.affine(total, most, self.weights.w_ih, self.bias)

    @cached_property
    def bias(self) -> Tensor | None:
        """What igates take of the two biases."""
        b_ih, b_hh = self.weights.b_ih, self.weights.b_hh
        return b_ih if b_ih is None or b_hh is None else self.kernel.bias(b_ih, b_hh)

    def b_hh(self, steps: int) -> Tensor | None:
        """Return the bias that `hgates` come without, for the rows of so many steps."""
        return None if self.exact else self.weights.b_hh

    @cached_property
    def hgates(self) -> Product:
        """W_hh h, and if exact + b_hh."""
        w_hh, b_hh = self.weights.w_hh, self.weights.b_hh
        return products.exact(w_hh, b_hh) if self.exact else self.repeated(w_hh.mT)

    @cached_property
    def project(self) -> Product | None:
        """W_hr m."""
        w_hr = self.weights.w_hr
        return None if w_hr is None else products.exact(w_hr) if self.exact else self.repeated(w_hr.mT)

    def memory(self, like: Tensor, rows: int) -> Tensor:
        """Allocate the igates of `rows` rows: in odd lines, if the weight is large and hgates are added to them."""
        shape = rows, *like.shape[1:-1], self.weights.w_ih.size(-2)
        large = self.weights.w_hh.numel() > products.LARGE
        return products.in_odd_lines(like, *shape) if large else like.new_empty(shape)

    def tape(self, like: Tensor, rows: int, shared: int | None = None) -> list[Tensor]:
        """Allocate what the steps of `rows` rows write on; of `shared` rows what one step leaves to the next to overwrite.

        With a projection, what is projected (m) is the last of it.
        """
        tape = [*self.kernel.tape(self.memory(like, rows if shared is None else shared), rows)]
        return tape if self.weights.w_hr is None else [*tape, torch.empty_like(tape[-1])]

    # Back -----------------------------------------------------------------------------------------------------------

    @cached_property
    def dh(self) -> Product:
        """dhgates W_hh."""
        return self.repeated(self.weights.w_hh)

    @cached_property
    def unproject(self) -> Product | None:
        """dh W_hr."""
        return None if self.weights.w_hr is None else self.repeated(self.weights.w_hr)

    @cached_property
    def w_x(self) -> Tensor:
        """W_ih transposed, its gates in the kernel's order."""
        return self.kernel.in_order(self.weights.w_ih).mT

    def dx(self, digates: Tensor) -> Tensor:
        """Return digates W_ih."""
        return products.linear(digates, self.w_x)

    def gradient(self, dy: Tensor) -> Gradient:
        """Return, for y = x @ w.T, the function (x, total) -> total + the gradient of w."""
        return products.gradient(dy)

    def sum(self, dy: Tensor) -> Tensor:
        """Return the sum over all rows."""
        return dy.sum(0)

    def repeated(self, w_t: Tensor) -> Product:
        """Make the product of a step's rows with w_t ready."""
        return products.repeated(self.steps, self.N, w_t)
