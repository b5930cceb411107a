"""Measurements that are too long for the tests. Run each as `python -m benchmarks.NAME`."""
