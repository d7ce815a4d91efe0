"""Settings for all tests; the variables must be set before torch is imported."""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need the network

# Cores are shared, so a slow example is no failure; the same examples each time.
settings.register_profile("palimpsest", deadline=None, derandomize=True)
settings.load_profile("palimpsest")
