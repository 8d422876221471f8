"""Labelled grey images, split in two."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Labelled grey images, split in two.

    Attributes:
        train: Images to learn from, ``(n, H, W)`` uint8.
        train_labels: Their classes, ``(n,)`` int64 in 0…classes−1.
        test: Held-out images, ``(m, H, W)`` uint8.
        test_labels: Their classes, ``(m,)``.
        class_names: One name a class.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
