"""Reinforcement learning: environments, replay, Soft Actor-Critic."""
