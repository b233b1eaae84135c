"""Tensors of the same values that lie in memory in other ways."""

import random

import torch
from torch import Tensor

__all__ = ["expanded", "laid_out", "narrowed", "negated", "negative", "strided", "transposed"]


def transposed(values: Tensor, draw: random.Random) -> Tensor:
    order = draw.sample(range(values.ndim), values.ndim)
    back = [order.index(place) for place in range(values.ndim)]
    return values.permute(order).contiguous().permute(back)


def strided(values: Tensor, draw: random.Random) -> Tensor:
    wide = values.new_full([2 * size + 1 for size in values.shape], torch.nan)
    part = wide[tuple(slice(1, 2 * size + 1, 2) for size in values.shape)]
    return part.copy_(values)


def narrowed(values: Tensor, draw: random.Random) -> Tensor:
    place = draw.randrange(values.ndim)
    wide = torch.cat([torch.full_like(values, torch.nan), values.flip(place)], place)
    return wide.flip(place).narrow(place, 0, values.shape[place])


def expanded(values: Tensor, draw: random.Random) -> Tensor:
    kept = draw.sample(range(values.ndim), draw.randrange(values.ndim))
    index = tuple(slice(None) if place in kept else slice(0, 1) for place in range(values.ndim))
    return values[index].expand(values.shape)


def negated(values: Tensor, draw: random.Random) -> Tensor:
    """With a minus that is still to be done, as the conjugate's imaginary part has it."""
    return torch.complex(values, -values).conj().imag


def negative(values: Tensor, draw: random.Random) -> Tensor:
    """The same, in one contiguous piece."""
    return torch._neg_view(-values)


def as_it_is(values: Tensor, draw: random.Random) -> Tensor:
    return values


LAYOUTS = [as_it_is, transposed, strided, narrowed, expanded, negated, negative]


def laid_out(values: Tensor, draw: random.Random) -> Tensor:
    layout = draw.choice(LAYOUTS)
    return layout(values.detach().clone(), draw).detach()
