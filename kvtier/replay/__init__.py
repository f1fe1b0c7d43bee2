"""Driving a recorded trace into the cache, on real devices or in virtual time."""

from kvtier.replay.runs import replay_trace, simulate_trace

__all__ = ["replay_trace", "simulate_trace"]
