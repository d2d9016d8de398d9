"""Measurements of what users wait for, against the published way of doing it. Run: python benchmarks/run.py"""
