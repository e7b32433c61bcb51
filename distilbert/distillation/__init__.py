"""Distillation (Sanh et al. 2019, https://arxiv.org/abs/1910.01108): data and recipe, for any framework.

The losses are in each backend's ``losses.py``.
"""
