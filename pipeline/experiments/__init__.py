"""Economic experiments: the frontier, elasticities, the spread over time, and what each demonstration was worth.

Each is a module whose `run(cfg)` returns its key numbers, and leaves a CSV, an SVG, a PNG and a JSON file of one name
in RUN/experiments or --out.
"""
