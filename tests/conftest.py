import random
import sys

import numpy as np
import pytest
from hypothesis import settings

# Shared machines are slow now and then, and a red run must be red again when it is repeated.
settings.register_profile("vtp", deadline=None, derandomize=True, database=None)
settings.load_profile("vtp")


@pytest.fixture(autouse=True)
def random_state_is_restored():
    """No test leaves a seed behind for the next one; torch is asked only where something has loaded it."""
    python, legacy = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    state = torch.get_rng_state() if torch else None
    yield
    random.setstate(python)
    np.random.set_state(legacy)
    if torch:
        torch.set_rng_state(state)
