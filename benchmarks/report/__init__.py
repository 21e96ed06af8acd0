"""From records to tables and pictures: ``python -m benchmarks.report FOLDER``."""
