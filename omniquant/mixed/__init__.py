"""Mixed precision: how much each linear suffers at each number of bits, and the best bits for a budget."""

from omniquant.mixed.allocation import Allocation, allocate
from omniquant.mixed.knapsack import choose_bits

__all__ = ["Allocation", "allocate", "choose_bits"]
