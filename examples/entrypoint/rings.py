"""A training function of one's own: tell points of an inner ring from points of an outer one.

The data is made here, so the example needs nothing but torch. It shows all that a function has to do: share out the work
by rank, report each step, save when asked, continue where it was, stop when asked.
"""

from __future__ import annotations

import math

import torch

from orchestrator.training import Context

BATCH = 64


def make_batch(step: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The points of one step, the same whoever asks: a function of the step, so that a restart repeats nothing."""
    numbers = torch.Generator().manual_seed(seed * 1_000_003 + step)
    outer = torch.arange(BATCH) % 2
    radius = 1.0 + outer + 0.3 * torch.randn(BATCH, generator=numbers)
    angle = 2 * math.pi * torch.rand(BATCH, generator=numbers)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), outer.float()


def train(context: Context, steps: int, learning_rate: float) -> dict[str, float]:
    """Called once on every rank, with `spec.entrypoint.args`."""
    torch.manual_seed(context.seed)  # the same weights on every rank
    model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    first = 0
    if (state := context.load()) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]

    for step in range(first, steps):
        points, outer = make_batch(step, context.seed)
        mine = slice(context.rank, None, context.world_size)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(points[mine]).squeeze(1), outer[mine])
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():  # what DistributedDataParallel would do
            if context.world_size > 1 and parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= context.world_size
        optimizer.step()

        context.report(step=step + 1, loss=loss.item(), samples=len(points[mine]), lr=learning_rate)
        if context.should_checkpoint():
            context.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
        if context.should_stop:
            break

    points, outer = make_batch(10**6, context.seed)
    right = (model(points).squeeze(1) > 0) == outer.bool()
    return {"accuracy": right.float().mean().item()}
