"""Economic experiments: frontier, elasticities, spread over time, use of novelty, value of each demonstration.

Each module's `run(cfg)` returns its key numbers and writes a CSV, an SVG, a PNG and a JSON file of the same name to
RUN/experiments or --out.
"""
