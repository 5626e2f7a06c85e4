"""Benchmarks: quality, speed, looks and cohorts, each with a page made of its records.

``python tests/benchmarks quality|speed|looks|cohort --out FILE.json`` measures, and
``python tests/benchmarks page BENCHMARK FILE.json FILE.md`` makes a page of the records;
``docs/results/README.md`` explains both. The package ``wsi_pgdips`` does not import this one.
"""
