"""Offloading of mixture-of-experts models: simulate policies, and run them on a real model."""
