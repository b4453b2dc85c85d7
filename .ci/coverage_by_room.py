"""Print how much of each room of pipeline/ the tests ran, from the .coverage that `make coverage` leaves."""

from collections import defaultdict
from pathlib import PurePath

import coverage

data = coverage.Coverage()
data.load()
statements: dict[str, int] = defaultdict(int)
missed: dict[str, int] = defaultdict(int)
for file in data.get_data().measured_files():
    parts = PurePath(file).parts
    if "pipeline" not in parts or not file.endswith(".py"):  # jinja's templates count as measured too
        continue
    room = parts[len(parts) - parts[::-1].index("pipeline")].removesuffix(".py")
    _, lines, _, absent, _ = data.analysis2(file)
    statements[room] += len(lines)
    missed[room] += len(absent)
rows = [*sorted(statements), "all"]
statements["all"], missed["all"] = sum(statements.values()), sum(missed.values())
print(f"{'room':<14}{'lines':>7}{'missed':>8}{'run':>6}")
for room in rows:
    print(f"{room:<14}{statements[room]:>7}{missed[room]:>8}{1 - missed[room] / max(statements[room], 1):>6.0%}")
