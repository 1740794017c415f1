"""The Ray engine as a test holds it: in an actor, because its workers talk to one, with the engine's own interface here."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Any

import ray

from orchestrator.platforms.engines.base import Cadence, Events, Listener, Outcome, RunRequest, WishBoard, Wishes

ASK_SECONDS = 0.05


class EngineActor:
    """A Ray engine with a mailbox and nothing else."""

    def __init__(self) -> None:
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "8"
        from orchestrator.platforms.engines.ray_train import RayTrainEngine

        self._engine = RayTrainEngine()
        self._wishes = WishBoard()
        self._heard: deque[Any] = deque()
        self._cadences = 1_000

    def exchange(self, uid: str, attempt: int, rank: int, first: int, events: Events) -> Wishes:
        return self._engine.exchange(uid, attempt, rank, first, events)

    def run(self, request: RunRequest) -> Outcome:
        self._wishes = WishBoard(request.cadence)
        return self._engine.run(request, self._heard.extend, self._wishes)

    def heard(self, wishes: Wishes) -> list[Any]:
        """What was heard since the last call; raises the wishes to these."""
        here = self._wishes.read()
        for _ in range(wishes.checkpoint - here.checkpoint):
            self._wishes.wish_checkpoint()
        if wishes.stop:
            self._wishes.wish_stop()
        if wishes.checkpoint_every_seconds not in (None, here.checkpoint_every_seconds):
            self._cadences += 1
            self._wishes.wish_cadence(Cadence(self._cadences, wishes.checkpoint_every_seconds))
        return [self._heard.popleft() for _ in range(len(self._heard))]

    def kill(self) -> None:
        self._engine.kill()


class RayEngineFromOutside:
    """The `Engine` port over an `EngineActor`."""

    name = "ray"

    def __init__(self) -> None:
        self.actor: Any = ray.remote(EngineActor).options(num_cpus=0, max_concurrency=8).remote()

    def run(self, request: RunRequest, listener: Listener, wishes: WishBoard) -> Outcome:
        running = self.actor.run.remote(request)
        done: list[Any] = []
        pause = threading.Event()
        while not done:
            done, _ = ray.wait([running], timeout=0)
            if events := ray.get(self.actor.heard.remote(wishes.read())):
                listener(events)
            pause.wait(ASK_SECONDS)
        outcome: Outcome = ray.get(running)
        if events := ray.get(self.actor.heard.remote(wishes.read())):
            listener(events)
        return outcome

    def kill(self) -> None:
        ray.get(self.actor.kill.remote())

    def close(self) -> None:
        ray.kill(self.actor)
