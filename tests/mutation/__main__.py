"""`python -m tests.mutation`: every exercise, its wrong versions and how many were caught, its right ones.

Exits with 1 if a wrong version was taken, or caught without its mistake being named, or a right one was refused.
"""

import sys

import torch

from tests.mutation.runner import EXERCISES, table, try_all

if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = [try_all(name) for name in EXERCISES]
    print(table(rows))
    sys.exit(any(row.named < row.mutants or row.passed < row.right for row in rows))
