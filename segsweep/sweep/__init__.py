"""Sweeps: many trainings, each a process of its own, chosen by Optuna. Nothing here imports torch or Hydra."""
