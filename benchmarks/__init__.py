"""How fast marcod is, measured and never tested: ``python -m benchmarks`` or ``make bench``.

One module a question, each with ``run(bench)`` that yields tables; docs/benchmarks.md says what they mean. All
files, rows and images are made here and synthetic, live in a temporary folder and are removed at the end.
"""
